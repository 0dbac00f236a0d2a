//! What a node tells of its disks, and of what it serves for as long as somebody listens.

use debros_proto::limits;
use prometheus_client::registry::Registry;

use super::disk::DiskState;
use super::registers::Registers;
use super::storage::Storage;
use crate::metrics::{Bounds, read_at_scrape};

/// Registers what is read of the disks at each scrape.
pub fn register_disks(registry: &mut Registry, disk: DiskState) {
    read_at_scrape(registry, move |readings| {
        readings.gauge(
            "debros_disk_free_bytes",
            "Bytes free on the fullest of the node's disks",
            disk.free_bytes(),
        )?;
        readings.gauge(
            "debros_disk_size_bytes",
            "Size of the fullest of the node's disks",
            disk.size_bytes(),
        )?;
        readings.gauge(
            "debros_disk_reserve_bytes",
            "Bytes kept free: below them writes are refused",
            limits::DISK_RESERVE_BYTES,
        )
    });
}

/// Names the watches beside their limits.
pub fn bound_watches(bounds: &Bounds, registers: &Registers, storage: &Storage) {
    let (registers, storage) = (registers.watches(), storage.watches());
    bounds.resource("register_watches", limits::REGISTER_WATCHES_MAX, move || {
        limits::REGISTER_WATCHES_MAX.saturating_sub(registers.available_permits())
    });
    bounds.resource("storage_watches", limits::STORAGE_WATCHES_MAX, move || {
        limits::STORAGE_WATCHES_MAX.saturating_sub(storage.available_permits())
    });
}
