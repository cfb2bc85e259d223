//! Message submission, end to end: every numbered step of the submission model, every result of SubmitMessage and every flag
//! of EndMessage, with a transport in a process of its own that writes down what it is asked to do.

mod support;

mod cancel;
mod flags;
mod publishing;
mod reports;
mod results;
mod sharing;
mod steps;
mod waiting;
