//! What an NVMe status means to the engine.

use oxblock_engine::{Error, ErrorKind, Fault, Source};
use oxblock_nvme::status::{SCT_MEDIA, Status};

/// The kind of error that a status is. SCT and SC count together.
pub(super) fn kind(status: Status) -> ErrorKind {
    // Compared by code, since retry and delay bits do not change the meaning.
    let is = |other: Status| status.code() == other.code();
    let any = |list: &[Status]| list.iter().any(|other| is(*other));
    if any(&[
        Status::INVALID_OPCODE,
        Status::NOT_SUPPORTED_IN_CMB,
        Status::COMMAND_SET_NOT_SUPPORTED,
        Status::COMMAND_SET_NOT_ENABLED,
    ]) {
        ErrorKind::NotSupported
    } else if any(&[
        Status::INVALID_FIELD,
        Status::LBA_OUT_OF_RANGE,
        Status::COMMAND_SIZE_LIMIT_EXCEEDED,
        Status::CONFLICTING_ATTRIBUTES,
        Status::INVALID_QUEUE_SIZE,
    ]) {
        ErrorKind::Invalid
    } else if any(&[
        Status::ABORT_REQUESTED,
        Status::ABORTED_SQ_DELETION,
        Status::ABORTED_BY_HOST,
        Status::PREEMPTED,
    ]) {
        ErrorKind::Cancelled
    } else if any(&[Status::CAPACITY_EXCEEDED, Status::NAMESPACE_INSUFFICIENT_CAPACITY]) {
        ErrorKind::NoSpace
    } else if any(&[Status::NAMESPACE_WRITE_PROTECTED, Status::WRITE_TO_READ_ONLY_RANGE]) {
        ErrorKind::ReadOnly
    } else if any(&[
        Status::NAMESPACE_NOT_READY,
        Status::FORMAT_IN_PROGRESS,
        Status::SANITIZE_IN_PROGRESS,
        Status::ANA_TRANSITION,
    ]) {
        ErrorKind::Busy
    } else if any(&[
        Status::OPERATION_DENIED,
        Status::RESERVATION_CONFLICT,
        Status::LOCKED_DOWN,
        Status::ACCESS_DENIED,
    ]) {
        ErrorKind::Denied
    } else if any(&[
        Status::GUARD_CHECK_ERROR,
        Status::APPLICATION_TAG_ERROR,
        Status::REFERENCE_TAG_ERROR,
        Status::STORAGE_TAG_ERROR,
        Status::INVALID_PROTECTION_INFORMATION,
    ]) {
        ErrorKind::Protection
    } else if is(Status::INVALID_NAMESPACE) {
        ErrorKind::Gone
    } else if is(Status::COMPARE_FAILURE) {
        ErrorKind::Mismatch
    } else if status.sct == SCT_MEDIA {
        ErrorKind::Media
    } else {
        ErrorKind::Io
    }
}

/// A failed I/O command as the engine sees it.
#[cold]
pub(super) fn fault(status: Status, offset: u64, block_shift: u8) -> Fault {
    let Status { sct, sc, dnr, .. } = status;
    let words = status.words().unwrap_or("a status that the specification does not name");
    let source = Source::Nvme { sct, sc, dnr, block_shift, words };
    Fault { kind: kind(status), source, offset }
}

/// Whether the same command may succeed when it is sent again. The other statuses say that
/// something is wrong with the command, or with what it names.
pub(super) fn may_pass(status: Status) -> bool {
    let passing = [ErrorKind::Io, ErrorKind::Media, ErrorKind::Busy, ErrorKind::Cancelled];
    passing.contains(&kind(status))
}

/// A failed admin command as a person sees it; `what` says what was asked.
pub(super) fn error(what: &str, status: Status) -> Error {
    Error::new(kind(status), format!("{what}: {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver that switched on SC alone took an internal path error (SCT 3h SC 00h) for success,
    /// and a completion queue error (SCT 1h SC 01h) for an invalid opcode.
    #[test]
    fn type_and_code_count_together() {
        assert_eq!(kind(Status::INVALID_OPCODE), ErrorKind::NotSupported);
        assert_eq!(kind(Status::INVALID_QID), ErrorKind::Io);
        assert_eq!(kind(Status::INTERNAL_PATH_ERROR), ErrorKind::Io);
        assert_eq!(kind(Status::CAPACITY_EXCEEDED), ErrorKind::NoSpace);
        assert_eq!(kind(Status::UNRECOVERED_READ_ERROR), ErrorKind::Media);
        let protection = kind(Status::INVALID_PROTECTION_INFORMATION);
        assert_eq!(protection, ErrorKind::Protection);
    }

    #[test]
    fn every_status_is_an_error_that_keeps_its_numbers() {
        for sct in 0..8 {
            for sc in 0..=255 {
                let fault = fault(Status::new(sct, sc).dnr(), 4096, 9);
                let Source::Nvme { sct: t, sc: c, dnr, block_shift, words } = fault.source else {
                    panic!("{fault:?}")
                };
                assert_eq!((t, c, dnr, block_shift), (sct, sc, true, 9));
                assert!(!words.is_empty());
                assert_eq!(fault.offset, 4096);
            }
        }
    }

    #[test]
    fn retry_bits_do_not_change_the_meaning() {
        let status = Status::COMPARE_FAILURE.dnr().more().crd(2);
        assert_eq!(kind(status), ErrorKind::Mismatch);
        let errno = kind(Status::NAMESPACE_WRITE_PROTECTED.crd(1)).errno();
        assert_eq!(errno, libc::EROFS);
    }
}
