//! Set Features and Get Features (Base 2.0, 5.27).

use oxblock_mem::IoVector;
use oxblock_nvme::event::EventMask;
use oxblock_nvme::feature::{self, QueueCounts};
use oxblock_nvme::{Command, NSID_ALL, Status};

use super::identify::TEMPERATURE_WARNING;
use super::logs::TEMPERATURE;
use super::power::{self, Power};

/// Bytes of the Host Behavior Support structure.
pub(crate) const HOST_BEHAVIOR_BYTES: usize = 512;

/// Bytes of the Timestamp structure.
pub(crate) const TIMESTAMP_BYTES: usize = 8;

/// Error Recovery, DULBE: an error for reads of deallocated blocks.
const DULBE: u32 = 1 << 16;

/// Set Features, SV: keep the value over power cycles and resets.
pub(crate) const SAVE: u32 = 1 << 31;

/// What SEL 011b answers: the value can be changed; it belongs to one namespace.
const CHANGEABLE: u32 = 1 << 2;
const OF_NAMESPACE: u32 = 1 << 1;

/// Largest value of the timestamp: 48 bits of milliseconds.
const TIMESTAMP_MASK: u64 = (1 << 48) - 1;

/// What the features depend on and do not change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FeatureLimits {
    pub(crate) io_queues: u16,
    pub(crate) vectors: u16,
    pub(crate) namespaces: u32,
    pub(crate) volatile_cache: bool,
    pub(crate) power_transitions: bool,
    pub(crate) keep_alive: bool,
    pub(crate) host_memory: bool,
}

/// The state that Set Features needs to know of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    /// Some I/O queue exists.
    pub(crate) has_io_queues: bool,
    /// Milliseconds on the controller's clock.
    pub(crate) now_ms: u64,
}

/// Current values of all features.
pub(crate) struct Features {
    limits: FeatureLimits,
    arbitration: u32,
    pub(crate) power: Power,
    /// Keep Alive Timeout, ms; 0 is none.
    keep_alive_ms: u32,
    over_temperature: u16,
    under_temperature: u16,
    /// Time-limited error recovery, for each namespace.
    error_recovery: Vec<u32>,
    write_cache: bool,
    queues: QueueCounts,
    coalescing: u32,
    /// Coalescing disabled, for each vector.
    vectors: Vec<bool>,
    write_atomicity: u32,
    events: EventMask,
    timestamp: Timestamp,
    host_behavior: [u8; HOST_BEHAVIOR_BYTES],
}

/// A clock that a host may set.
#[derive(Clone, Copy, Default)]
struct Timestamp {
    value_ms: u64,
    /// Our clock when it was set.
    at_ms: u64,
    /// Set by a host, and not only started by a reset.
    by_host: bool,
}

/// The events that a host can ask for.
pub(crate) const EVENTS: EventMask = EventMask::SPARE
    .union(EventMask::TEMPERATURE)
    .union(EventMask::RELIABILITY)
    .union(EventMask::READ_ONLY)
    .union(EventMask::BACKUP)
    .union(EventMask::NAMESPACE)
    .union(EventMask::FIRMWARE);

/// Features that there always are.
const SUPPORTED: [u8; 14] = [
    feature::ARBITRATION,
    feature::POWER_MANAGEMENT,
    feature::TEMPERATURE_THRESHOLD,
    feature::ERROR_RECOVERY,
    feature::VOLATILE_WRITE_CACHE,
    feature::NUMBER_OF_QUEUES,
    feature::INTERRUPT_COALESCING,
    feature::INTERRUPT_VECTOR_CONFIGURATION,
    feature::WRITE_ATOMICITY_NORMAL,
    feature::ASYNC_EVENT_CONFIGURATION,
    feature::TIMESTAMP,
    feature::HOST_BEHAVIOR_SUPPORT,
    feature::IO_COMMAND_SET_PROFILE,
    feature::NAMESPACE_WRITE_PROTECTION,
];

/// Granularity of the Keep Alive Timeout in ms: that of KAS.
pub(crate) const KEEP_ALIVE_UNIT_MS: u32 = 100;

impl Features {
    /// All features at their defaults, as after a reset at `now_ms`.
    pub(crate) fn new(limits: FeatureLimits, now_ms: u64) -> Features {
        Features {
            limits,
            // No limit on the burst; weights are of no use without weighted arbitration.
            arbitration: 0x7,
            power: Power::new(limits.power_transitions, now_ms),
            keep_alive_ms: 0,
            over_temperature: TEMPERATURE_WARNING,
            under_temperature: 0,
            error_recovery: vec![0; limits.namespaces as usize],
            write_cache: limits.volatile_cache,
            queues: QueueCounts { submission: limits.io_queues, completion: limits.io_queues },
            coalescing: 0,
            vectors: vec![false; usize::from(limits.vectors)],
            write_atomicity: 0,
            events: EventMask::empty(),
            timestamp: Timestamp { at_ms: now_ms, ..Timestamp::default() },
            host_behavior: [0; HOST_BEHAVIOR_BYTES],
        }
    }

    /// Whether writes may stay in the volatile cache.
    pub(crate) fn write_cache(&self) -> bool {
        self.write_cache
    }

    /// Whether there is such a feature.
    pub(crate) fn has(&self, fid: u8) -> bool {
        let limits = &self.limits;
        match fid {
            feature::AUTONOMOUS_POWER_STATE_TRANSITION => limits.power_transitions,
            feature::KEEP_ALIVE_TIMER => limits.keep_alive,
            feature::HOST_MEMORY_BUFFER => limits.host_memory,
            fid => SUPPORTED.contains(&fid),
        }
    }

    /// Keep Alive Timeout, ms; 0 is none.
    pub(crate) fn keep_alive_ms(&self) -> u32 {
        self.keep_alive_ms
    }

    /// How interrupts of I/O queues are coalesced: at most so many completions are held back, and
    /// at most for this time in ns. `None` if they are not.
    pub(crate) fn coalescing(&self) -> Option<(u32, u64)> {
        const UNIT_NS: u64 = 100_000;
        let (threshold, time) = (self.coalescing & 0xff, u64::from(self.coalescing >> 8 & 0xff));
        (threshold > 0 && time > 0).then_some((threshold + 1, time * UNIT_NS))
    }

    /// Whether interrupts of a vector are coalesced, if any are.
    pub(crate) fn coalesces(&self, vector: u16) -> bool {
        self.vectors.get(usize::from(vector)).is_some_and(|disabled| !disabled)
    }

    /// Which notices and health events the host wants to hear of.
    pub(crate) fn events(&self) -> EventMask {
        self.events
    }

    /// How many I/O queues of each kind the host was given.
    pub(crate) fn queues(&self) -> QueueCounts {
        self.queues
    }

    /// Whether the temperature is past a threshold that the host set.
    pub(crate) fn temperature_warning(&self) -> bool {
        TEMPERATURE >= self.over_temperature || TEMPERATURE <= self.under_temperature
    }

    /// Bytes of data that Set Features or Get Features carries for this feature.
    pub(crate) fn data_len(fid: u8) -> usize {
        match fid {
            feature::TIMESTAMP => TIMESTAMP_BYTES,
            feature::HOST_BEHAVIOR_SUPPORT => HOST_BEHAVIOR_BYTES,
            feature::AUTONOMOUS_POWER_STATE_TRANSITION => power::TABLE_BYTES,
            _ => 0,
        }
    }

    /// Set Features. `data` holds what the host sent along, for features that have data.
    ///
    /// # Errors
    /// The feature does not exist, the value is out of range, or it is not the time for it.
    pub(crate) fn set(
        &mut self,
        command: &Command,
        data: &IoVector,
        now: Situation,
    ) -> Result<u32, Status> {
        let fid = command.cdw10() as u8;
        if command.cdw10() & SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        self.check_nsid(fid, command.nsid())?;
        if !self.has(fid) {
            return Err(Status::INVALID_FIELD);
        }
        let value = command.cdw11();
        match fid {
            feature::ARBITRATION => self.arbitration = value & !0xf8,
            feature::POWER_MANAGEMENT => self.power.set_state(value)?,
            feature::AUTONOMOUS_POWER_STATE_TRANSITION => {
                self.power.set_autonomous(value, data, now.now_ms)?;
            }
            feature::KEEP_ALIVE_TIMER => {
                let units = value.div_ceil(KEEP_ALIVE_UNIT_MS);
                self.keep_alive_ms = units.saturating_mul(KEEP_ALIVE_UNIT_MS);
            }
            feature::TEMPERATURE_THRESHOLD => self.set_temperature(value)?,
            feature::ERROR_RECOVERY => self.set_error_recovery(command.nsid(), value)?,
            feature::VOLATILE_WRITE_CACHE => self.set_write_cache(value)?,
            feature::NUMBER_OF_QUEUES => return self.set_queues(value, now),
            feature::INTERRUPT_COALESCING => self.coalescing = value & 0xffff,
            feature::INTERRUPT_VECTOR_CONFIGURATION => {
                *self.vector(value)? = value & 1 << 16 != 0;
            }
            feature::WRITE_ATOMICITY_NORMAL => self.write_atomicity = value & 1,
            feature::ASYNC_EVENT_CONFIGURATION => {
                self.events = EventMask::from_bits_truncate(value) & EVENTS;
            }
            feature::TIMESTAMP => self.set_timestamp(data, now.now_ms),
            feature::HOST_BEHAVIOR_SUPPORT => self.set_host_behavior(data)?,
            // The only combination of command sets has index 0.
            feature::IO_COMMAND_SET_PROFILE if value & 0x1ff != 0 => {
                return Err(Status::COMMAND_SET_COMBINATION_REJECTED);
            }
            feature::IO_COMMAND_SET_PROFILE => {}
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }

    /// Get Features: dword 0 of the completion, and the data in `into` where there is some.
    ///
    /// # Errors
    /// The feature does not exist, or its selector is out of range.
    pub(crate) fn get(
        &mut self,
        command: &Command,
        into: &mut IoVector,
        now_ms: u64,
    ) -> Result<u32, Status> {
        let fid = command.cdw10() as u8;
        if !self.has(fid) {
            return Err(Status::INVALID_FIELD);
        }
        match (command.cdw10() >> 8 & 7) as u8 {
            feature::SEL_CURRENT => self.current(fid, command, into, now_ms),
            // Nothing is saved, so the saved values are the defaults (5.15).
            feature::SEL_DEFAULT | feature::SEL_SAVED => {
                Features::new(self.limits, now_ms).current(fid, command, into, now_ms)
            }
            feature::SEL_SUPPORTED => Ok(supported(fid)),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn current(
        &mut self,
        fid: u8,
        command: &Command,
        into: &mut IoVector,
        now_ms: u64,
    ) -> Result<u32, Status> {
        let value = match fid {
            feature::ARBITRATION => self.arbitration,
            feature::POWER_MANAGEMENT => self.power.to_dword(),
            feature::AUTONOMOUS_POWER_STATE_TRANSITION => {
                self.power.write_table(into);
                self.power.is_autonomous().into()
            }
            feature::KEEP_ALIVE_TIMER => self.keep_alive_ms,
            feature::TEMPERATURE_THRESHOLD => u32::from(*self.temperature(command.cdw11())?),
            feature::ERROR_RECOVERY => *self.error_recovery_of(command.nsid())?,
            feature::VOLATILE_WRITE_CACHE if !self.limits.volatile_cache => {
                return Err(Status::INVALID_FIELD);
            }
            feature::VOLATILE_WRITE_CACHE => u32::from(self.write_cache),
            feature::NUMBER_OF_QUEUES => self.queues.to_dword(),
            feature::INTERRUPT_COALESCING => self.coalescing,
            feature::INTERRUPT_VECTOR_CONFIGURATION => {
                let vector = command.cdw11() & 0xffff;
                vector | u32::from(*self.vector(vector)?) << 16
            }
            feature::WRITE_ATOMICITY_NORMAL => self.write_atomicity,
            feature::ASYNC_EVENT_CONFIGURATION => self.events.bits(),
            feature::TIMESTAMP => {
                into.write_at(0, &self.timestamp.to_bytes(now_ms));
                0
            }
            feature::HOST_BEHAVIOR_SUPPORT => {
                into.write_at(0, &self.host_behavior);
                0
            }
            feature::IO_COMMAND_SET_PROFILE => 0,
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok(value)
    }

    /// Features of the controller take no namespace (5.27.1); 0h and all of them will do.
    fn check_nsid(&self, fid: u8, nsid: u32) -> Result<(), Status> {
        if nsid != 0 && nsid != NSID_ALL {
            if nsid > self.limits.namespaces {
                return Err(Status::INVALID_NAMESPACE);
            }
            if !is_of_namespace(fid) {
                return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
            }
        }
        Ok(())
    }

    fn set_temperature(&mut self, value: u32) -> Result<(), Status> {
        *self.temperature(value)? = value as u16;
        Ok(())
    }

    /// The threshold that dword 11 selects: of the composite temperature (0h), or of all
    /// sensors (Fh) when setting.
    fn temperature(&mut self, value: u32) -> Result<&mut u16, Status> {
        let sensor = value >> 16 & 0xf;
        if sensor != 0 && sensor != 0xf {
            return Err(Status::INVALID_FIELD);
        }
        match value >> 20 & 3 {
            0 => Ok(&mut self.over_temperature),
            1 => Ok(&mut self.under_temperature),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn set_error_recovery(&mut self, nsid: u32, value: u32) -> Result<(), Status> {
        if value & DULBE != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if nsid == NSID_ALL {
            self.error_recovery.fill(value & 0xffff);
            return Ok(());
        }
        *self.error_recovery_of(nsid)? = value & 0xffff;
        Ok(())
    }

    fn error_recovery_of(&mut self, nsid: u32) -> Result<&mut u32, Status> {
        let index = nsid.checked_sub(1).and_then(|i| usize::try_from(i).ok());
        let value = index.and_then(|i| self.error_recovery.get_mut(i));
        value.ok_or(Status::INVALID_NAMESPACE)
    }

    fn set_write_cache(&mut self, value: u32) -> Result<(), Status> {
        if !self.limits.volatile_cache {
            return Err(Status::INVALID_FIELD);
        }
        self.write_cache = value & 1 != 0;
        Ok(())
    }

    /// Only before the first I/O queue is created (5.27.1.5).
    fn set_queues(&mut self, value: u32, now: Situation) -> Result<u32, Status> {
        if now.has_io_queues {
            return Err(Status::SEQUENCE_ERROR);
        }
        if value & 0xffff == 0xffff || value >> 16 == 0xffff {
            return Err(Status::INVALID_FIELD);
        }
        let asked = QueueCounts::from_dword(value);
        self.queues = QueueCounts {
            submission: asked.submission.min(self.limits.io_queues),
            completion: asked.completion.min(self.limits.io_queues),
        };
        Ok(self.queues.to_dword())
    }

    fn vector(&mut self, value: u32) -> Result<&mut bool, Status> {
        let vector = (value & 0xffff) as usize;
        self.vectors.get_mut(vector).ok_or(Status::INVALID_FIELD)
    }

    fn set_timestamp(&mut self, data: &IoVector, now_ms: u64) {
        let mut bytes = [0; TIMESTAMP_BYTES];
        data.read_at(0, &mut bytes);
        self.timestamp = Timestamp {
            value_ms: u64::from_le_bytes(bytes) & TIMESTAMP_MASK,
            at_ms: now_ms,
            by_host: true,
        };
    }

    /// Three bytes are defined, each 0 or 1: ACRE, ETDAS, LBAFEE (5.27.1.18).
    fn set_host_behavior(&mut self, data: &IoVector) -> Result<(), Status> {
        let mut bytes = [0; HOST_BEHAVIOR_BYTES];
        data.read_at(0, &mut bytes);
        let (defined, reserved) = bytes.split_at_mut(3);
        if defined.iter().any(|&b| b > 1) {
            return Err(Status::INVALID_FIELD);
        }
        reserved.fill(0);
        self.host_behavior = bytes;
        Ok(())
    }
}

impl Timestamp {
    /// The structure of figure 347: 48 bits of milliseconds, then where they come from.
    fn to_bytes(self, now_ms: u64) -> [u8; TIMESTAMP_BYTES] {
        let elapsed = now_ms.saturating_sub(self.at_ms);
        let value = self.value_ms.wrapping_add(elapsed) & TIMESTAMP_MASK;
        let origin = u64::from(self.by_host) << 1;
        (value | origin << 48).to_le_bytes()
    }
}

/// What SEL 011b answers for a feature that there is.
pub(crate) fn supported(fid: u8) -> u32 {
    CHANGEABLE | if is_of_namespace(fid) { OF_NAMESPACE } else { 0 }
}

/// Whether a feature belongs to one namespace.
pub(crate) fn is_of_namespace(fid: u8) -> bool {
    matches!(fid, feature::ERROR_RECOVERY | feature::NAMESPACE_WRITE_PROTECTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Situation = Situation { has_io_queues: false, now_ms: 0 };

    fn features() -> Features {
        let limits = FeatureLimits {
            io_queues: 4,
            vectors: 3,
            namespaces: 2,
            volatile_cache: true,
            power_transitions: false,
            keep_alive: false,
            host_memory: false,
        };
        Features::new(limits, 0)
    }

    fn set(f: &mut Features, fid: u8, nsid: u32, value: u32) -> Result<u32, Status> {
        f.set(&Command::set_features(fid, nsid, value), &IoVector::new(), QUIET)
    }

    fn get(f: &mut Features, fid: u8, nsid: u32, sel: u8, cdw11: u32) -> Result<u32, Status> {
        let mut command = Command::get_features(fid, nsid, sel);
        command = command.with_cdw10_11(command.cdw10(), cdw11);
        f.get(&command, &mut IoVector::new(), 0)
    }

    #[test]
    fn queue_counts_are_granted_once_and_bounded() {
        let mut f = features();
        let fid = feature::NUMBER_OF_QUEUES;
        assert_eq!(get(&mut f, fid, 0, 0, 0), Ok(0x0003_0003));
        assert_eq!(set(&mut f, fid, 0, 0x0001_00ff), Ok(0x0001_0003));
        assert_eq!(get(&mut f, fid, 0, feature::SEL_DEFAULT, 0), Ok(0x0003_0003));
        assert_eq!(set(&mut f, fid, 0, 0xffff), Err(Status::INVALID_FIELD));
        let busy = Situation { has_io_queues: true, now_ms: 0 };
        let command = Command::set_features(fid, 0, 0);
        let late = f.set(&command, &IoVector::new(), busy);
        assert_eq!(late, Err(Status::SEQUENCE_ERROR));
    }

    #[test]
    fn values_are_checked_and_kept() {
        let mut f = features();
        assert_eq!(set(&mut f, feature::VOLATILE_WRITE_CACHE, 0, 0), Ok(0));
        assert!(!f.write_cache());
        assert_eq!(get(&mut f, feature::VOLATILE_WRITE_CACHE, 0, 2, 0), Ok(1));
        assert_eq!(set(&mut f, feature::POWER_MANAGEMENT, 0, 1), Err(Status::INVALID_FIELD));
        let iv = feature::INTERRUPT_VECTOR_CONFIGURATION;
        assert_eq!(set(&mut f, iv, 0, 1 << 16 | 2), Ok(0));
        assert_eq!(get(&mut f, iv, 0, 0, 2), Ok(1 << 16 | 2));
        assert_eq!(set(&mut f, iv, 0, 3), Err(Status::INVALID_FIELD));
        assert_eq!(set(&mut f, feature::ASYNC_EVENT_CONFIGURATION, 0, u32::MAX), Ok(0));
        assert_eq!(f.events(), EVENTS);
        assert_eq!(set(&mut f, 0x7f, 0, 0), Err(Status::INVALID_FIELD));
        assert_eq!(get(&mut f, 0x7f, 0, 3, 0), Err(Status::INVALID_FIELD));
        assert_eq!(get(&mut f, feature::ARBITRATION, 0, 5, 0), Err(Status::INVALID_FIELD));
    }

    #[test]
    fn temperature_thresholds_warn() {
        let mut f = features();
        let fid = feature::TEMPERATURE_THRESHOLD;
        assert!(!f.temperature_warning());
        assert_eq!(set(&mut f, fid, 0, u32::from(TEMPERATURE)), Ok(0));
        assert!(f.temperature_warning());
        assert_eq!(set(&mut f, fid, 0, 0xffff), Ok(0));
        assert_eq!(set(&mut f, fid, 0, 1 << 20 | 0xffff), Ok(0));
        assert!(f.temperature_warning());
        assert_eq!(get(&mut f, fid, 0, 0, 1 << 20), Ok(0xffff));
        assert_eq!(set(&mut f, fid, 0, 1 << 16), Err(Status::INVALID_FIELD));
        assert_eq!(set(&mut f, fid, 0, 2 << 20), Err(Status::INVALID_FIELD));
    }

    #[test]
    fn namespaces_are_named_only_where_they_matter() {
        let mut f = features();
        let fid = feature::ERROR_RECOVERY;
        assert_eq!(set(&mut f, fid, 2, 7), Ok(0));
        assert_eq!(get(&mut f, fid, 2, 0, 0), Ok(7));
        assert_eq!(get(&mut f, fid, 1, 0, 0), Ok(0));
        assert_eq!(set(&mut f, fid, NSID_ALL, 9), Ok(0));
        assert_eq!(get(&mut f, fid, 1, 0, 0), Ok(9));
        assert_eq!(set(&mut f, fid, 1, DULBE), Err(Status::INVALID_FIELD));
        assert_eq!(set(&mut f, fid, 3, 0), Err(Status::INVALID_NAMESPACE));
        assert_eq!(get(&mut f, fid, 0, 0, 0), Err(Status::INVALID_NAMESPACE));
        let specific = set(&mut f, feature::ARBITRATION, 1, 0);
        assert_eq!(specific, Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC));
        let saved = f.set(
            &Command::set_features(fid, 1, 0).with_cdw10_11(SAVE | u32::from(fid), 0),
            &IoVector::new(),
            QUIET,
        );
        assert_eq!(saved, Err(Status::FEATURE_NOT_SAVEABLE));
        assert_eq!(get(&mut f, fid, 1, 3, 0), Ok(CHANGEABLE | OF_NAMESPACE));
    }

    #[test]
    fn the_clock_goes_on_from_where_it_was_set() {
        let stamp = Timestamp { value_ms: 1000, at_ms: 50, by_host: true };
        let bytes = stamp.to_bytes(80);
        assert_eq!(u64::from_le_bytes(bytes), 1030 | 2 << 48);
        let wrapped = Timestamp { value_ms: TIMESTAMP_MASK, at_ms: 0, by_host: false };
        assert_eq!(wrapped.to_bytes(1), [0; 8]);
    }
}
