//! Names of files, as images hold them and people write them.

use crate::Error;
use crate::options::invalid;

/// Whether something stands before a colon in the first part of a name: a protocol.
pub fn has_protocol(name: &str) -> bool {
    name.find([':', '/']).is_some_and(|at| name[at..].starts_with(':'))
}

/// What `name` is where it stands in the file that is called `base`: in the same folder, and beneath
/// the same protocol. An absolute name stays what it is.
pub fn combine(base: &str, name: &str) -> String {
    if name.starts_with('/') {
        return name.into();
    }
    let after_protocol = match has_protocol(base) {
        true => base.find(':').map_or(0, |at| at + 1),
        false => 0,
    };
    let after_folder = base.rfind('/').map_or(0, |at| at + 1);
    format!("{}{name}", &base[..after_protocol.max(after_folder)])
}

/// The whole name of the backing file that an image of this name calls `backing`; `None` if it is
/// called nothing.
///
/// # Errors
/// `Invalid`: a relative name, where the image has none of its own or only JSON.
pub fn full_backing_name(image: &str, backing: &str) -> Result<Option<String>, Error> {
    if backing.is_empty() {
        return Ok(None);
    }
    if has_protocol(backing) || backing.starts_with('/') {
        return Ok(Some(backing.into()));
    }
    if image.is_empty() || image.starts_with("json:") {
        return Err(invalid(format!("Cannot use relative backing file names for '{image}'")));
    }
    Ok(Some(combine(image, backing)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_combined_within_folder_and_protocol() {
        for (base, name, whole) in [
            ("a.img", "b.img", "b.img"),
            ("/d/a.img", "b.img", "/d/b.img"),
            ("d/e/a.img", "../b.img", "d/e/../b.img"),
            ("/d/a.img", "/b.img", "/b.img"),
            ("/d/a.img", "", "/d/"),
            ("a.img", "", ""),
            ("file:a.img", "b.img", "file:b.img"),
            ("file:/d/a.img", "b.img", "file:/d/b.img"),
            ("nbd://host/export", "b", "nbd://host/b"),
            ("null-co://", "", "null-co://"),
            ("d/x:y", "b", "d/b"),
        ] {
            assert_eq!(combine(base, name), whole, "{base} {name}");
        }
    }

    #[test]
    fn backing_names_may_bring_a_protocol_and_need_a_folder_otherwise() {
        let full = |image, backing| full_backing_name(image, backing).ok();
        assert_eq!(full("/d/a", "b"), Some(Some("/d/b".into())));
        assert_eq!(full("/d/a", "./x:b"), Some(Some("/d/./x:b".into())));
        assert_eq!(full("/d/a", "nbd:unix:/s"), Some(Some("nbd:unix:/s".into())));
        assert_eq!(full("json:{}", "json:{}"), Some(Some("json:{}".into())));
        assert_eq!(full("json:{}", "/b"), Some(Some("/b".into())));
        assert_eq!(full("/d/a", ""), Some(None));
        for image in ["", "json:{}"] {
            let error = full_backing_name(image, "b").unwrap_err().to_string();
            assert_eq!(error, format!("Cannot use relative backing file names for '{image}'"));
        }
    }
}
