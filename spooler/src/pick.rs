//! Which ready work goes next.
use pombo_proto::message::Priority;

#[derive(Clone, Debug)]
pub struct Pick {}
impl Pick {
    /// `urgent_share`: percent of credit that only urgent messages use.
    pub fn new(weights: [u32; 3], urgent_share: u8) -> Self { let _ = (weights, urgent_share); unimplemented!() }
    /// `ready`: whether there is work, by [`Priority::ALL`]. `free` of `total` credit.
    pub fn next(&mut self, ready: [bool; 3], free: u32, total: u32) -> Option<Priority> { let _ = (ready, free, total); unimplemented!() }
}
