//! From faults of the engine to NVMe status.

use oxblock_engine::{ErrorKind, Fault, OpKind, Source};
use oxblock_nvme::Status;
use oxblock_nvme::status::{SCT_COMMAND, SCT_GENERIC};

/// The status that tells a host of a fault.
#[cold]
pub(crate) fn of_fault(fault: &Fault, kind: OpKind) -> Status {
    if let Source::Nvme { sct, sc, dnr, .. } = fault.source {
        return Status { dnr, ..Status::new(sct, sc) };
    }
    let is_read = matches!(kind, OpKind::Read | OpKind::Compare);
    match fault.kind {
        ErrorKind::Mismatch => Status::COMPARE_FAILURE.dnr(),
        ErrorKind::Media if is_read => Status::UNRECOVERED_READ_ERROR.dnr(),
        ErrorKind::Media => Status::WRITE_FAULT.dnr(),
        ErrorKind::Protection => Status::GUARD_CHECK_ERROR.dnr(),
        ErrorKind::NoSpace => Status::CAPACITY_EXCEEDED.dnr(),
        ErrorKind::ReadOnly | ErrorKind::Denied => Status::NAMESPACE_WRITE_PROTECTED.dnr(),
        ErrorKind::Cancelled => Status::ABORT_REQUESTED,
        ErrorKind::Invalid => Status::INVALID_FIELD.dnr(),
        ErrorKind::NotSupported => Status::INVALID_OPCODE.dnr(),
        ErrorKind::Busy | ErrorKind::OutOfMemory => Status::NAMESPACE_NOT_READY,
        ErrorKind::Io
        | ErrorKind::TimedOut
        | ErrorKind::Gone
        | ErrorKind::NotFound
        | ErrorKind::Failed => Status::INTERNAL_ERROR,
    }
}

/// Marks those errors that come back however often the host tries: the command is wrong.
pub(crate) fn settled(status: Status) -> Status {
    if status.is_success() || status.sct > SCT_COMMAND {
        return status;
    }
    let transient = [
        Status::INTERNAL_ERROR,
        Status::ABORT_REQUESTED,
        Status::ABORTED_SQ_DELETION,
        Status::NAMESPACE_NOT_READY,
        Status::DATA_TRANSFER_ERROR,
        Status::FORMAT_IN_PROGRESS,
        Status::SANITIZE_IN_PROGRESS,
    ];
    let code = status.code();
    if status.sct == SCT_GENERIC && transient.iter().any(|s| s.code() == code) {
        return status;
    }
    status.dnr()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fault of an NVMe device below keeps its status on the way to the host above.
    #[test]
    fn nvme_faults_pass_through() {
        let mut fault = Fault::new(ErrorKind::Media, 0);
        assert_eq!(of_fault(&fault, OpKind::Read), Status::UNRECOVERED_READ_ERROR.dnr());
        assert_eq!(of_fault(&fault, OpKind::Write), Status::WRITE_FAULT.dnr());
        let (sct, sc, dnr) = (7, 0xc1, false);
        fault.source = Source::Nvme { sct, sc, dnr, block_shift: 9, words: "" };
        assert_eq!(of_fault(&fault, OpKind::Read), Status::new(7, 0xc1));
    }

    #[test]
    fn wrong_commands_are_not_to_be_retried() {
        assert!(settled(Status::INVALID_FIELD).dnr && settled(Status::INVALID_QID).dnr);
        assert!(!settled(Status::ABORT_REQUESTED).dnr && !settled(Status::SUCCESS).dnr);
        assert!(!settled(Status::UNRECOVERED_READ_ERROR).dnr);
    }
}
