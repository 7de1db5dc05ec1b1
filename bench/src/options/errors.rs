//! Names of errors, for `ignore_error`.

/// errno by its name, on Linux.
const ERRNOS: [(&str, i32); 23] = [
    ("EPERM", 1),
    ("ENOENT", 2),
    ("EINTR", 4),
    ("EIO", 5),
    ("ENXIO", 6),
    ("EBADF", 9),
    ("EAGAIN", 11),
    ("ENOMEM", 12),
    ("EACCES", 13),
    ("EBUSY", 16),
    ("ENODEV", 19),
    ("EINVAL", 22),
    ("EFBIG", 27),
    ("ENOSPC", 28),
    ("EROFS", 30),
    ("ENODATA", 61),
    ("EILSEQ", 84),
    ("EOPNOTSUPP", 95),
    ("ENOTSUP", 95),
    ("ESHUTDOWN", 108),
    ("ETIMEDOUT", 110),
    ("EDQUOT", 122),
    ("ECANCELED", 125),
];

/// The errnos that are ignored of reads, and of writes and trims.
pub(super) fn ignored(word: &str) -> Result<[Vec<i32>; 2], String> {
    let lists: Vec<&str> = word.split(',').collect();
    if lists.len() > 2 {
        return Err(format!(
            "`{word}` has more than the errors of reads and of writes; those of checks are not ignored"
        ));
    }
    let list = |at: usize| -> Result<Vec<i32>, String> {
        let names = lists.get(at).copied().unwrap_or("");
        names.split(':').map(str::trim).filter(|name| !name.is_empty()).map(errno).collect()
    };
    Ok([list(0)?, list(1)?])
}

fn errno(word: &str) -> Result<i32, String> {
    let named = ERRNOS.iter().find(|(name, _)| *name == word).map(|(_, errno)| *errno);
    let number = word.parse().ok().filter(|errno| (1..4096).contains(errno));
    named.or(number).ok_or_else(|| {
        format!("`{word}` is no error that is known by name; give its number, such as 5 for EIO")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_named_or_numbered() {
        assert_eq!(ignored("EAGAIN,ENOSPC:122"), Ok([vec![11], vec![28, 122]]));
        assert_eq!(ignored("5"), Ok([vec![5], vec![]]));
        assert_eq!(ignored(",EIO"), Ok([vec![], vec![5]]));
        for bad in ["EWHAT", "0", "-5", "EIO,EIO,EIO", "5000"] {
            assert!(ignored(bad).is_err(), "{bad}");
        }
    }
}
