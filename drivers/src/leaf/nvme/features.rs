//! What a controller has beside queues and namespaces: set up at attach, and again after each
//! reset, which forgets it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxblock_engine::{Core, Error};
use oxblock_mem::Cells;
use oxblock_nvme::Command;
use oxblock_nvme::identify::Controller as ControllerPage;
use oxblock_pci::Function;

use super::NvmeOptions;
use super::admin::Admin;
use super::cmb::ControllerMemory;
use super::hardware::Hardware;
use super::host_memory::HostMemory;
use super::keep_alive::KeepAlive;
use super::{pmr, power};

/// The features of one controller.
pub(super) struct Features {
    options: NvmeOptions,
    function: Arc<dyn Function>,
    controller_memory: Mutex<Option<ControllerMemory>>,
    /// The embedder has the persistent memory region.
    keeps_persistent: AtomicBool,
    host_memory: Mutex<Option<HostMemory>>,
    keep_alive: KeepAlive,
    /// What could not be had, by what it is about: told anew by each set-up.
    notices: Mutex<Vec<String>>,
}

impl Features {
    /// None is set up yet.
    pub fn new(function: &Arc<dyn Function>, options: &NvmeOptions) -> Self {
        Self {
            options: options.clone(),
            function: function.clone(),
            controller_memory: Mutex::default(),
            keeps_persistent: AtomicBool::new(false),
            host_memory: Mutex::default(),
            keep_alive: KeepAlive::default(),
            notices: Mutex::default(),
        }
    }

    /// Sets them up on a controller that was just enabled. What it refuses is a notice; it works
    /// without.
    ///
    /// # Errors
    /// The controller failed, is gone, or did not answer in time.
    pub async fn set_up(
        &self,
        core: &Core,
        admin: &Arc<Admin>,
        hardware: &Arc<Hardware>,
        page: &ControllerPage,
    ) -> Result<(), Error> {
        let mut notices = Vec::new();
        notices.extend(self.find_controller_memory(core, hardware)?);
        if self.keeps_persistent.load(Ordering::Relaxed)
            && let Err(error) = pmr::enable(core, hardware).await
        {
            notices.push(format!("no persistent memory after the reset: {error}"));
        }
        notices.extend(self.lend_memory(core, admin, hardware, page).await?);
        let latency = self.options.power_latency;
        notices.extend(power::configure(core, admin, page, hardware.quirks(), latency).await?);
        let time = self.options.keep_alive;
        notices.extend(self.keep_alive.start(core, admin, hardware, page, time).await?);
        *lock(&self.notices) = notices;
        Ok(())
    }

    /// Finds the controller's own memory, if it is wanted. Says why it is not used.
    fn find_controller_memory(
        &self,
        core: &Core,
        hardware: &Hardware,
    ) -> Result<Option<String>, Error> {
        if !self.options.controller_memory {
            return Ok(None);
        }
        let mut known = lock(&self.controller_memory);
        if let Some(memory) = &*known {
            return memory.find_again(hardware).map(|()| None);
        }
        let found = ControllerMemory::find(core, &*self.function, hardware)?;
        Ok(found.map(|memory| *known = memory).err())
    }

    /// Room for a submission queue in the controller's own memory, and its address there; none if
    /// there is no such memory, or it is full.
    pub fn controller_queue(&self, qid: u16, len: usize) -> Option<(Cells, u64)> {
        lock(&self.controller_memory).as_ref()?.queue(qid, len as u64)
    }

    /// The persistent memory region is enabled by each set-up from now on.
    pub fn keep_persistent_memory(&self) {
        self.keeps_persistent.store(true, Ordering::Relaxed);
    }

    /// Gives the controller a buffer of host memory, or the one that it had before a reset. Says
    /// why it has none.
    async fn lend_memory(
        &self,
        core: &Core,
        admin: &Arc<Admin>,
        hardware: &Arc<Hardware>,
        page: &ControllerPage,
    ) -> Result<Option<String>, Error> {
        let command = {
            let mut held = lock(&self.host_memory);
            if held.is_none() {
                match HostMemory::new(core, hardware, page, self.options.host_memory)? {
                    Ok(memory) => *held = memory,
                    Err(notice) => return Ok(Some(notice)),
                }
            }
            let Some(memory) = held.as_mut() else { return Ok(None) };
            memory.lend()
        };
        let status = admin.execute(core, command, None).await?.completion.status();
        if status.is_success() {
            if let Some(memory) = lock(&self.host_memory).as_mut() {
                memory.lent();
            }
            return Ok(None);
        }
        if let Some(memory) = lock(&self.host_memory).take() {
            memory.free();
        }
        Ok(Some(format!(
            "no host memory buffer: the controller refuses what it asks for: {status}"
        )))
    }

    /// Takes back what the controller holds, before it is shut down. What it does not give back is
    /// kept until it is quiet.
    pub async fn withdraw(&self, core: &Core, admin: &Arc<Admin>) {
        self.keep_alive.stop();
        if lock(&self.host_memory).is_none() {
            return;
        }
        let command = Command::host_memory_buffer(0, 0, 0, 0);
        let done = admin.execute(core, command, None).await;
        if done.is_ok_and(|done| done.completion.is_success())
            && let Some(memory) = lock(&self.host_memory).take()
        {
            memory.free();
        }
    }

    /// The function is to be let go of: its own memory is not mapped any more.
    pub fn forget_function(&self) {
        drop(lock(&self.controller_memory).take());
    }

    /// What the controller has, or should have, and the driver does not use, and why.
    pub fn notices(&self) -> Vec<String> {
        lock(&self.notices).clone()
    }

    /// Bytes of memory that the controller was given for its own use.
    pub fn host_memory(&self) -> u64 {
        lock(&self.host_memory).as_ref().map_or(0, HostMemory::len_bytes)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
