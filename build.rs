//! Compiles the CRI protocol with a pure-Rust protobuf compiler: no `protoc` on the machine.

use std::{env, fs, path::PathBuf};

use prost_types::FileDescriptorSet;

const PROTO: &str = "proto/cri/v1/cri.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).open_file(PROTO)?;
    // The descriptor is kept for the test that holds it against the table of protocol facts, encoded
    // by the compiler itself: the Rust types do not know every option.
    let encoded = compiler.encode_file_descriptor_set();
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("cri.bin"),
        &encoded,
    )?;
    let descriptors: FileDescriptorSet = prost::Message::decode(encoded.as_slice())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .compile_fds(descriptors)?;
    Ok(())
}
