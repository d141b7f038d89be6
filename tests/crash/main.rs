//! The real binary on real disks, while everything goes wrong: killed, without power, on a full
//! disk, on damaged files, asked to stop. What it acknowledged must be there when it is started
//! again. README.md lists which test plays what.
//!
//! `EDDYLINE_CRASH_ROUNDS` raises the number of kills, `EDDYLINE_CUT_ROUNDS` that of power cuts,
//! `EDDYLINE_CRASH_SEED` repeats a run (the seed is printed). With `EDDYLINE_SHARED` the flights
//! tests also take the whole file; with `EDDYLINE_NO_SKIP` a test that cannot run here fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "test code fails by panicking and says what it does"
)]

mod abuse;
mod churn;
mod client;
mod damage;
mod faults;
mod flights;
mod full;
mod image;
mod inside;
mod kill;
mod limits;
mod load;
mod members;
mod murmur2;
mod node;
mod owner;
mod power;
mod sockets;
mod start;
mod stop;
