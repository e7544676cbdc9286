//! ROS 2 messages and the transport under them.

pub mod cdr;
pub mod image;
pub mod msg;
pub mod parameters;
#[cfg(feature = "transport")]
pub mod rosout;
pub mod srv;
pub mod stamp;
pub mod transport;

pub use stamp::Stamp;
