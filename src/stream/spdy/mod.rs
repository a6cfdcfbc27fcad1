//! SPDY/3.1 as Kubernetes clients speak it: framing, header blocks, and the server's side of a
//! connection. No flow control, no streams of the server's, and no header of ours that is not empty.

pub mod codec;
mod dictionary;
pub mod headers;
mod protocol;

#[cfg(test)]
mod tests;

pub use protocol::Spdy;
