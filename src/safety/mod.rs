//! What may be commanded, and when. No clock is read and nothing is published here: times and messages are passed in.
//!
//! | question | answered by |
//! |---|---|
//! | May the robot be commanded at all? | [`gate`]: lifecycle, dry run and e-stop, in [`Gate::may_command`](gate::Gate::may_command) |
//! | Is what is commanded up to date? | [`watchdog`]: hold or stop on stale inputs, late inference, a failed tick |
//! | Is it within what the joints may do? | [`limits`]: position, velocity and step, from parameters and from a URDF ([`urdf`]) |

pub mod gate;
pub mod limits;
pub mod urdf;
pub mod watchdog;
