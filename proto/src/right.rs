//! The right to send, in numbers: how long a silent party may still do something, and when the others may rely on it that it
//! does not any more.
//!
//! ```text
//! spooler: renewal sent ----- at most L -----> last status row answered
//! agent:                                       row sent (before that) ----- D -----> last final dot written
//! network:                                                                           dot written ---> dot arrived
//! whoever looks at the store: counter seen ------------------- L + D + margin -------------------> the agent is gone
//! ```
//!
//! No two clocks are compared: each party measures a length on its own. A spooler writes the counter of an agent's row in the
//! store with its own renewal, and answers that agent only while this holds; so a counter that was seen, and has not
//! moved for [`GONE_AFTER`], proves that no answer has been given for `D + margin`, and no dot was written for `margin`.
//! What remains is a pause of the agent between its last look at the clock and the write: shorter than the margin, or doubt.

use std::time::Duration;

/// L: a row in the store that is unchanged for this long belongs to nobody. Five renewals: three may be late, and the sessions
/// of who cannot renew are ended before anybody takes over.
pub const SILENCE: Duration = Duration::from_secs(10);

/// D: how long an answered status row lets an agent write final dots, counted from when it was sent. Ten rows: what a broker
/// that changes its leader takes to answer again.
pub const VALID: Duration = Duration::from_secs(10);

/// How long the kernel of an agent's machine may try to deliver what was written ([`TCP_USER_TIMEOUT`]), a pause between check
/// and write, and clocks that do not run alike.
pub const MARGIN: Duration = Duration::from_secs(15);

/// An agent's connections to foreign systems end when what was written is not acknowledged for so long: a final dot does not
/// arrive later than this.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(12);

/// Whoever saw an agent's counter in the store unchanged for so long knows that it has lost its right to send.
pub const GONE_AFTER: Duration =
    Duration::from_secs(SILENCE.as_secs() + VALID.as_secs() + MARGIN.as_secs());

const _: () = assert!(TCP_USER_TIMEOUT.as_secs() + 2 <= MARGIN.as_secs());
