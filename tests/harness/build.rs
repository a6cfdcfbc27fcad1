//! Compiles the CRI protocol into a client: the rings speak to any runtime, not only to ours.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../../proto/cri/v1/cri.proto");
    let descriptors = protox::compile(["cri/v1/cri.proto"], ["../../proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
