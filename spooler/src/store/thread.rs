//! x
pub struct StoreThread;
