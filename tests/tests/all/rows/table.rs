//! The page and the source agree.

use std::fs;
use std::path::{Path, PathBuf};

use oxblock_tests::rows::{COUNT, rows};

/// The folder of files that are named without one.
const DRIVER: &str = "drivers/src/leaf/nvme";
/// Where tests are looked for.
const CRATES: [&str; 4] = ["drivers/src", "nvme/src", "tests/tests", "mem/src"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// All sources below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether a file of this name has a test function with this beginning.
fn has_test(sources: &[PathBuf], file: &str, name: &str) -> bool {
    let beginning = match name.strip_suffix('*') {
        Some(beginning) => format!("fn {beginning}"),
        None => format!("fn {name}("),
    };
    let of_file = sources.iter().filter(|path| path.file_stem().is_some_and(|stem| stem == file));
    of_file.into_iter().any(|path| {
        let text = fs::read_to_string(path).expect("a source");
        let mut tests = text.split("#[test]").skip(1);
        tests.any(|test| test.split('{').next().is_some_and(|head| head.contains(&beginning)))
    })
}

#[test]
fn rows_are_as_documented() {
    let (root, rows) = (root(), rows());
    let numbers: Vec<u32> = rows.iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=COUNT).collect::<Vec<u32>>());
    let mut found = Vec::new();
    CRATES.iter().for_each(|folder| sources(&root.join(folder), &mut found));
    for row in rows {
        assert!(!row.handled.is_empty() && !row.tests.is_empty(), "{row:?}");
        assert!(!row.condition.is_empty() && !row.injected.is_empty(), "{row:?}");
        for file in row.handled {
            let path =
                if file.contains('/') { root.join(file) } else { root.join(DRIVER).join(file) };
            assert!(path.exists(), "row {}: there is no {}", row.number, path.display());
        }
        for test in row.tests {
            let (file, name) = test.split_once("::").expect("a file and a test");
            assert!(has_test(&found, file, name), "row {}: there is no test {test}", row.number);
        }
    }
}
