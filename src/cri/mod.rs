//! The gRPC edge: the only module that names protobuf types. Parse, call the domain, render.

pub mod convert;
pub mod edge;
pub mod image;
pub mod info;
pub mod proto;
pub mod runtime;
pub mod status;
pub mod stream;
pub mod usage;
pub mod views;
