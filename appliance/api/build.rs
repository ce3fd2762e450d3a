//! Compiles the protobuf files in Rust: no protoc is needed.

use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 12] = [
    "adit/v1/agent.proto",
    "adit/v1/bdev.proto",
    "adit/v1/config.proto",
    "adit/v1/controller.proto",
    "adit/v1/kept.proto",
    "adit/v1/node.proto",
    "adit/v1/operation.proto",
    "adit/v1/pool.proto",
    "adit/v1/reactor.proto",
    "adit/v1/subsystem.proto",
    "adit/v1/transport.proto",
    "adit/v1/volume.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("adit_v1.bin"), descriptors.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
