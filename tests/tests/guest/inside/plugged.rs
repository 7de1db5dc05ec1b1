//! A controller of a test's own: plugged in with the properties that it needs, and taken out.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::disks::{PLUGGED, PLUGGED_BUS, disk_node};
use super::host::{execute, try_execute, wait_for};
use super::machine::{give, until};

/// What QEMU calls it.
const ID: &str = "plugged";
/// Whether the kernel's drivers take what comes, as they always do.
const AUTOPROBE: &str = "/sys/bus/pci/drivers_autoprobe";

/// A controller in the last port, gone when dropped.
pub struct Plugged(());

impl Plugged {
    /// Plugs a controller in, with these properties besides those that each has, and hands it over
    /// to user space.
    pub fn new(properties: &Value) -> Plugged {
        let plugged = Plugged::without_driver(properties);
        give(PLUGGED.address, "vfio-pci").unwrap_or_else(|e| panic!("{e}"));
        plugged
    }

    /// The same, and no driver has it.
    pub fn without_driver(properties: &Value) -> Plugged {
        plug(properties);
        Plugged(())
    }

    /// Asks the guest to let go of it. QEMU tells, in time, that it has: see [`Plugged::wait_out`].
    pub fn begin_removal(&self) {
        execute("device_del", json!({ "id": ID }));
    }

    /// Waits until it is out, and drops it.
    pub fn wait_out(self) {
        wait_for("DEVICE_DELETED", ID);
        assert!(until(|| !is_there()), "the kernel still has {}", PLUGGED.address);
        std::mem::forget(self);
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        // Only when its user has let go it goes out: what follows waits for that.
        let _ = try_execute("device_del", json!({ "id": ID }));
    }
}

/// Plugs a controller in; it has no driver.
fn plug(properties: &Value) {
    let mut device = json!({
        "driver": "nvme", "id": ID, "bus": format!("port{PLUGGED_BUS}"), "serial": PLUGGED.serial,
        "drive": disk_node(PLUGGED_BUS, 1),
    });
    for (name, value) in properties.as_object().expect("properties") {
        device[name] = value.clone();
    }
    fs::write(AUTOPROBE, "0").expect("no driver takes it by itself");
    // The disk of one that was there before is let go a moment after it.
    let added = until(|| try_execute("device_add", device.clone()).is_ok());
    assert!(added, "QEMU does not take {device}");
    let found = until(is_there);
    fs::write(AUTOPROBE, "1").expect("drivers take what comes");
    assert!(found, "the kernel did not find {}", PLUGGED.address);
}

/// Takes out what the test before may have left in the port.
///
/// Errors: it does not go.
pub fn unplug() -> Result<(), String> {
    let begun = Instant::now();
    while is_there() {
        // Refused while it is being taken out.
        let _ = try_execute("device_del", json!({ "id": ID }));
        if begun.elapsed() > Duration::from_secs(20) {
            return Err(format!("{} does not go out of its port", PLUGGED.address));
        }
        until(|| !is_there());
    }
    Ok(())
}

/// The kernel knows of a controller in the port.
pub fn is_there() -> bool {
    Path::new(&format!("/sys/bus/pci/devices/{}", PLUGGED.address)).exists()
}
