//! Firmware that a controller begins to run without a reset (Base 2.0, 5.2 and 5.13; row 28).

use std::sync::Arc;
use std::time::Duration;

use oxblock_engine::{Core, Error, EventKind};

use super::controller::Controller;
use super::identify;

/// How often CSTS.PP is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Holds all I/O until the controller takes commands again (CSTS.PP = 0), for as long as it says
/// that an activation takes at most; then looks at it afresh. One that takes longer is reset.
pub(super) async fn wait_for_activation(core: &Core, controller: &Arc<Controller>) {
    let (name, limit) = (controller.name(), controller.activation_timeout());
    let text = "begins to run other firmware; I/O waits";
    core.publish(name, EventKind::FirmwareActivation, text);
    let nodes = controller.namespaces_known().nodes();
    for node in &nodes {
        let _ = core.hold(node).await;
    }
    let is_over = wait(core, controller, limit).await;
    // Also where it took too long: a reset decides what becomes of I/O then.
    if !is_over {
        controller.hardware().fail();
    }
    for node in &nodes {
        let _ = core.resume(node).await;
    }
    let text = match is_over {
        // What it tells of itself may be another.
        true if identify_again(core, controller).await.is_ok() => {
            format!("runs firmware {}, and was identified again", controller.identity().firmware)
        }
        true => "runs its firmware, but could not be identified again".into(),
        false => format!("did not begin to run its firmware within {limit:?}, and is being reset"),
    };
    core.publish(name, EventKind::FirmwareActivated, text);
}

async fn identify_again(core: &Core, controller: &Arc<Controller>) -> Result<(), Error> {
    controller.rescan_some(core, None).await?;
    let page = identify::controller(core, controller.admin()).await?;
    controller.set_firmware(&page);
    Ok(())
}

/// False if it takes longer than `limit`.
async fn wait(core: &Core, controller: &Arc<Controller>, limit: Duration) -> bool {
    let begun = core.now();
    loop {
        // The time first: a thread that was held up looks once more before it gives up.
        let late = core.now() - begun >= limit.as_nanos() as u64;
        match controller.hardware().status() {
            Ok(csts) if csts.pp() && late => return false,
            Ok(csts) if csts.pp() => core.sleep(LOOK_INTERVAL).await,
            // One that is gone ends by itself.
            Ok(_) | Err(_) => return true,
        }
    }
}
