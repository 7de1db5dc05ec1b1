//! What would hold up a core, done by a thread of its own.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_pci::{Delays, Function};

use super::hardware::{Hardware, pci_error};
use super::home::WATCH_NS;

/// How often a wait for a thread looks whether it is done.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Resets a function, which forgets its command register with all else, and enables it again. Other
/// work of the core goes on meanwhile.
///
/// # Errors
/// It has no reset, or did not come back.
pub(super) async fn reset_function(core: &Core, function: &Arc<dyn Function>) -> Result<(), Error> {
    let (delays, function) = (function.delays(), function.clone());
    let reset = move || {
        function.reset()?;
        oxblock_pci::enable(function.config())
    };
    let outcome = match delays {
        Delays::None => reset(),
        Delays::Reset | Delays::Registers => elsewhere(core, reset).await?,
    };
    outcome.map_err(pci_error)
}

/// Does something on a thread, and waits for it as a task.
///
/// # Errors
/// There is no thread to be had, or it panicked.
async fn elsewhere<T: Send + 'static>(
    core: &Core,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let thread = thread::Builder::new()
        .name("oxblock-nvme".into())
        .spawn(work)
        .map_err(|error| Error::from_io("beginning a thread", error))?;
    while !thread.is_finished() {
        core.sleep(LOOK_INTERVAL).await;
    }
    let panicked = |_| Error::new(ErrorKind::Failed, "the thread of a call that blocks panicked");
    thread.join().map_err(panicked)
}

/// Looks after a controller whose registers take their time, in the place of its home core, until
/// it is over.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn watch(hardware: &Arc<Hardware>) -> Result<(), Error> {
    let weak = Arc::downgrade(hardware);
    let look = move || {
        while let Some(hardware) = weak.upgrade()
            && !hardware.health().is_over()
        {
            hardware.watch();
            drop(hardware);
            thread::sleep(Duration::from_nanos(WATCH_NS));
        }
    };
    let thread = thread::Builder::new().name("oxblock-watch".into());
    thread.spawn(look).map(drop).map_err(|error| Error::from_io("beginning a thread", error))
}
