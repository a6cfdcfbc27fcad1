//! The generated protobuf types and services of `proto/cri/v1`, as the compiler made them.

#![allow(missing_docs, clippy::all, unused_qualifications, rust_2018_idioms)]

tonic::include_proto!("runtime.v1");
