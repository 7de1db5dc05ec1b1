//! Dataset Management (NVM Command Set 1.0, 3.2.3).

use oxblock_nvme::dsm::{self, RANGES_MAX};
use oxblock_nvme::{Command, Status};

use super::long::{Job, Kind};
use crate::data::DataPath;
use crate::namespace::Geometry;

/// Bytes of a range on the wire.
const RANGE_BYTES: usize = 16;

/// Takes the ranges to deallocate. Other attributes are hints, and need nothing done.
pub(super) fn deallocate<D: DataPath>(
    command: &Command,
    namespace: &Geometry,
    data: &mut D,
    job: &mut Job,
) -> Result<bool, Status> {
    let count = (command.cdw10() & 0xff) as usize + 1;
    if command.cdw11() & dsm::AD == 0 {
        return Ok(false);
    }
    namespace.writable()?;
    let mut bytes = [0; RANGES_MAX * RANGE_BYTES];
    let bytes = &mut bytes[..count * RANGE_BYTES];
    data.map(command, bytes.len())?.read_at(0, bytes);
    job.begin(Kind::Deallocate);
    // All ranges are checked before the first is touched.
    for words in bytes.as_chunks::<8>().0.as_chunks::<2>().0 {
        let range = dsm::Range::from_words(words.map(u64::from_le_bytes));
        let range = namespace.range(range.slba.get(), range.nlb.get().into())?;
        if range.len > 0 {
            job.push(range);
        }
    }
    Ok(!job.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::Range;
    use crate::namespace::tests::geometry;
    use crate::nvm::long::tests::{Ram, job};
    use zerocopy::IntoBytes;

    fn run(ranges: &[dsm::Range], attributes: u32) -> (Result<bool, Status>, Vec<Range>) {
        let mut ram = Ram::new(ranges.as_bytes());
        let mut job = job();
        let count = ranges.len() as u32;
        let command = Command::dataset_management(1, count, attributes);
        let result = deallocate(&command, &geometry(100, 12), &mut ram, &mut job);
        (result, job.ranges().to_vec())
    }

    #[test]
    fn ranges_are_taken_and_empty_ones_skipped() {
        let ranges = [dsm::Range::new(5, 2), dsm::Range::new(9, 0), dsm::Range::new(99, 1)];
        let (result, got) = run(&ranges, dsm::AD);
        assert_eq!(result, Ok(true));
        let expected = [(5 << 12, 2 << 12), (99 << 12, 1 << 12)];
        assert_eq!(got, expected.map(|(offset, len)| Range { offset, len }));
        assert_eq!(run(&ranges, dsm::IDR | dsm::IDW).0, Ok(false));
        assert_eq!(run(&[dsm::Range::new(0, 0)], dsm::AD).0, Ok(false));
    }

    #[test]
    fn one_bad_range_refuses_all() {
        for bad in [dsm::Range::new(100, 1), dsm::Range::new(u64::MAX, u32::MAX)] {
            let (result, _) = run(&[dsm::Range::new(0, 1), bad], dsm::AD);
            assert_eq!(result, Err(Status::LBA_OUT_OF_RANGE));
        }
    }
}
