//! Compiles the wire contract with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: &[&str] = &[
        "debros/v1/common.proto",
        "debros/v1/database.proto",
        "debros/v1/cluster.proto",
        "debros/v1/peering.proto",
        "debros/v1/raft.proto",
        "debros/v1/storage.proto",
        "debros/v1/replica.proto",
        "debros/v1/registers.proto",
        "debros/v1/pubsub.proto",
        "debros/v1/routing.proto",
        "debros/v1/log.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
