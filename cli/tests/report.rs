//! `oxblock bench --report`: the page, as a browser sees it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PLOTS: [&str; 5] = ["latency", "percentiles", "iops", "bandwidth", "cpu"];

/// Runs a short mix, and gives the page it left at `path`.
fn make_page(path: &Path) -> String {
    let report = format!("--report={}", path.display());
    let output = Command::new(env!("CARGO_BIN_EXE_oxblock"))
        .args(["bench", "--target=memory", "--size=16m", "--rw=randrw", "--iodepth=4"])
        .args(["--runtime=500ms", "--time_based", &report])
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("IOPS"), "no report for the person");
    std::fs::read_to_string(path).expect("the page")
}

/// The element that begins at `start`, up to its `end`, for each time there is one.
fn marks_of<'a>(page: &'a str, id: &str) -> impl Iterator<Item = &'a str> {
    let at = page.find(&format!("data-plot=\"{id}\"")).expect("the plot");
    let figure = page[at..].split("</figure>").next().expect("its end");
    figure.split("class=\"mark ").skip(1)
}

#[test]
fn each_plot_has_marks_in_a_browser() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("report.html");
    let page = make_page(&path);
    for id in PLOTS {
        assert!(marks_of(&page, id).count() > 0, "{id}");
    }
    let Some(browser) = browser() else {
        eprintln!("skipped: no chromium on this machine; the page was not opened in a browser");
        return;
    };
    let dom = dump_dom(&browser, folder.path(), &path);
    assert!(dom.contains("</html>"), "{dom}");
    for id in PLOTS {
        // What the parser of a browser made of it: shapes inside an svg, with a place and a size.
        let marks: Vec<&str> = marks_of(&dom, id).collect();
        assert!(!marks.is_empty(), "{id}: no marks in the browser");
        let drawn = |mark: &&str| mark.contains(" d=\"M") || mark.contains(" width=\"");
        assert!(marks.iter().any(drawn), "{id}: {marks:?}");
        assert_eq!(marks.len(), marks_of(&page, id).count(), "{id}: marks were lost");
    }
    assert!(!dom.contains("<parsererror"), "{dom}");
}

fn dump_dom(browser: &Path, folder: &Path, page: &Path) -> String {
    let output = Command::new("timeout")
        .arg("120")
        .arg(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        .args(["--no-first-run", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("file://{}", page.display()))
        .stdin(Stdio::null())
        .output()
        .expect("the browser runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names.iter().flat_map(|name| folders.iter().map(move |f| f.join(name))).find(|p| p.is_file())
}

#[test]
fn a_page_that_cannot_be_written_is_named_before_the_run() {
    let output = Command::new(env!("CARGO_BIN_EXE_oxblock"))
        .args(["bench", "--target=null", "--rw=read", "--report=/no/such/folder/x.html"])
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/folder/x.html"));
}
