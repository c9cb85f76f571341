//! The kernel's ublk driver, which makes block devices whose requests a process serves: devices made, found again and
//! taken away, and queues of requests. What is done about a request is nothing of this.
//!
//! | module | owns |
//! |---|---|
//! | [`device`] | devices: made, started, given another server, removed |
//! | [`queue`] | the requests of a device |
//! | `ring` | `io_uring`, over which all of that goes; the code that is `unsafe` |
//! | `absent` | what stands for `ring` in a program that was built without it |

pub mod device;
pub mod queue;

#[cfg(not(feature = "online-ublk"))]
mod absent;
#[cfg(feature = "online-ublk")]
mod ring;

#[cfg(not(feature = "online-ublk"))]
use absent as ring;
