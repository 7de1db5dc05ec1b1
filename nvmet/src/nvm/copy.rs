//! Copy (NVM Command Set 1.0, 3.2.2), descriptor format 0h.

use oxblock_nvme::copy::SourceRange;
use oxblock_nvme::{Command, Status};
use zerocopy::FromBytes;

use super::long::{Job, Kind};
use super::{DTYPE, Rules};
use crate::data::DataPath;
use crate::namespace::{COPY_RANGES, Geometry};

/// Bytes of a source range on the wire.
const RANGE_BYTES: usize = size_of::<SourceRange>();

/// Takes the source ranges and where they go.
pub(super) fn copy<D: DataPath>(
    command: &Command,
    namespace: &Geometry,
    rules: &Rules,
    data: &mut D,
    job: &mut Job,
) -> Result<bool, Status> {
    const FORMAT: u32 = 0xf << 8;
    namespace.writable()?;
    let dword = command.cdw12();
    if dword & (FORMAT | DTYPE) != 0 {
        return Err(Status::INVALID_FIELD);
    }
    let count = (dword & 0xff) as usize + 1;
    if count > COPY_RANGES {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
    }
    let mut bytes = [0; COPY_RANGES * RANGE_BYTES];
    let bytes = &mut bytes[..count * RANGE_BYTES];
    data.map(command, bytes.len())?.read_at(0, bytes);

    let most = u64::from(namespace.copy_blocks());
    let mut blocks = 0;
    job.begin(Kind::Copy);
    for source in bytes.chunks_exact(RANGE_BYTES) {
        let Ok(source) = SourceRange::read_from_bytes(source) else {
            return Err(Status::INVALID_FIELD);
        };
        let range = namespace.range(source.slba.get(), source.blocks().into())?;
        blocks += u64::from(source.blocks());
        // MSSRL is not below MCL, so the sum holds for each range, too.
        if blocks > most {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
        }
        job.push(range);
    }
    let to = namespace.range(command.slba(), blocks)?;
    let fua = dword & oxblock_nvme::command::FUA != 0 || !rules.write_cache;
    job.set_destination(to, fua);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::tests::geometry;
    use crate::nvm::long::tests::{Ram, job};
    use zerocopy::IntoBytes;

    const RULES: Rules = Rules { transfer_max: u64::MAX, write_cache: true };

    fn run(to: u64, ranges: &[SourceRange], format: u8) -> Result<bool, Status> {
        let mut ram = Ram::new(ranges.as_bytes());
        let command = Command::copy(1, to, ranges.len() as u32, format);
        copy(&command, &geometry(1000, 12), &RULES, &mut ram, &mut job())
    }

    #[test]
    fn limits_hold() {
        assert_eq!(run(0, &[SourceRange::new(10, 64)], 0), Ok(true));
        assert_eq!(run(0, &[SourceRange::new(0, 1)], 1), Err(Status::INVALID_FIELD));
        let too_much = Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
        assert_eq!(run(0, &[SourceRange::new(0, 65)], 0), too_much);
        assert_eq!(run(0, &[SourceRange::new(0, 33); 2], 0), too_much);
        assert_eq!(run(0, &[SourceRange::new(0, 1); 129], 0), too_much);
        let outside = Err(Status::LBA_OUT_OF_RANGE);
        assert_eq!(run(0, &[SourceRange::new(999, 2)], 0), outside);
        assert_eq!(run(999, &[SourceRange::new(0, 2)], 0), outside);
        assert_eq!(run(u64::MAX, &[SourceRange::new(0, 1)], 0), outside);
    }
}
