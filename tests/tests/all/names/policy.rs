//! What is opened by names in images (the cases of CVE-2024-32498, CVE-2022-47951 and
//! CVE-2026-27211), and what is guessed (CVE-2008-2004).

use std::os::unix::fs::symlink;
use std::path::Path;

use oxblock_drivers::DRIVERS;
use oxblock_engine::graph::{ImageNames, OpenPolicy};
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Error, ErrorKind, Op};

use super::linked::{WITH_LINKED, image};
use super::opened;

/// Where images may lie, with a secret beside it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: Vec<u8>| {
        std::fs::write(folder.path().join(name), bytes).expect("a file");
    };
    std::fs::create_dir_all(folder.path().join("images/sub")).expect("folders");
    write("secret", vec![7; 4096]);
    write("images/base", vec![3; 4096]);
    write("images/sub/base", vec![4; 4096]);
    symlink("base", folder.path().join("images/link")).expect("a link");
    symlink(folder.path(), folder.path().join("images/out")).expect("a link");
    folder
}

fn options(path: &Path) -> NodeOptions {
    let mut options = NodeOptions::from_key_values("driver=linked,file.driver=file", None).unwrap();
    options.set("file.filename", path.display().to_string());
    options.set("read-only", true);
    options
}

fn with(image_names: ImageNames) -> OpenPolicy {
    OpenPolicy { image_names, ..OpenPolicy::default() }
}

/// Opens an image that names `backing`, and gives the byte that it shows, and its names: the one
/// in the image, the one in use.
fn shown(
    folder: &Path,
    backing: &str,
    policy: OpenPolicy,
) -> Result<(u8, Option<String>, String), Error> {
    let path = folder.join("images/top");
    std::fs::write(&path, image(backing, "raw")).expect("a file");
    opened(WITH_LINKED, options(&path), policy, async move |core, graph, id| {
        let node = graph.node(id)?.body.clone();
        let channel = core.open(&node).await?;
        let done = channel.run(Op::read(0, core.arena().alloc(512, 512)?)).await;
        done.result?;
        let mut byte = [0];
        done.op.data.read_at(0, &mut byte);
        assert!(!graph.backing_overridden(id)?);
        let used = graph.backing(id).expect("a backing file").child;
        let named = graph.image_backing(id).map(str::to_owned);
        assert_eq!(graph.names(id)?.filename()?, path.display().to_string());
        Ok((byte[0], named, graph.names(used)?.filename()?))
    })
}

#[test]
fn a_library_follows_no_name_unless_it_is_told_to() {
    let folder = folder();
    let error = shown(folder.path(), "base", OpenPolicy::default()).expect_err("a refusal");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("names in images are not followed"), "{error}");
    let whole = folder.path().join("images/base").display().to_string();
    let images = folder.path().join("images");
    for policy in [
        ImageNames::Any,
        ImageNames::Beneath(images.clone()),
        ImageNames::Beneath(folder.path().to_owned()),
        ImageNames::Listed(images, vec!["base".into()]),
    ] {
        let shown = shown(folder.path(), "base", with(policy)).expect("it is allowed");
        assert_eq!(shown, (3, Some(whole.clone()), whole.clone()));
    }
}

#[test]
fn names_stay_beneath_the_folder_and_go_through_no_link() {
    let folder = folder();
    let images = folder.path().join("images");
    let secret = folder.path().join("secret").display().to_string();
    let inside =
        |backing: &str| shown(folder.path(), backing, with(ImageNames::Beneath(images.clone())));
    for good in ["base", "./base", "sub/../base", &images.join("base").display().to_string()] {
        assert_eq!(inside(good).expect(good).0, 3, "{good}");
    }
    assert_eq!(inside("sub/base").expect("a file in a folder").0, 4);
    let json = format!(r#"json:{{"driver":"file","filename":"{secret}"}}"#);
    for (bad, words) in [
        ("../secret", "it does not lie there"),
        ("sub/../../secret", "it does not lie there"),
        (&secret, "it does not lie there"),
        ("/etc/passwd", "it does not lie there"),
        ("link", "a symbolic link leads there"),
        ("out/secret", "a symbolic link leads there"),
        ("sub", "it is no regular file"),
        ("file:base", "only plain file names"),
        ("nbd://host/x", "only plain file names"),
        (&json, "only plain file names"),
    ] {
        let error = inside(bad).expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::Denied, "{bad}: {error}");
        assert!(error.to_string().contains(words), "{bad}: {error}");
    }
    assert_eq!(inside("nope").expect_err("no file").kind(), ErrorKind::NotFound);
    let list = ImageNames::Listed(images.clone(), vec!["sub/base".into()]);
    assert_eq!(shown(folder.path(), "sub/base", with(list.clone())).expect("it is listed").0, 4);
    let error = shown(folder.path(), "base", with(list)).expect_err("it is not").to_string();
    assert!(error.contains("none of the files"), "{error}");
}

#[test]
fn circles_and_long_chains_end() {
    let folder = folder();
    let images = folder.path().join("images");
    let error = |policy: &ImageNames, depth: usize| {
        let policy = OpenPolicy { max_depth: depth, ..with(policy.clone()) };
        let path = images.join("a0");
        opened(WITH_LINKED, options(&path), policy, async |_, _, _| Ok(()))
            .map_err(|e| e.to_string())
    };
    for policy in [ImageNames::Any, ImageNames::Beneath(images.clone())] {
        std::fs::write(images.join("a0"), image("a1", "linked")).expect("a file");
        std::fs::write(images.join("a1"), image("./a0", "linked")).expect("a file");
        let said = error(&policy, 64).expect_err("a circle");
        assert!(said.contains("creates an infinite loop"), "{said}");
        for at in 0..10 {
            let backing = image(&format!("a{}", at + 1), "linked");
            std::fs::write(images.join(format!("a{at}")), backing).expect("a file");
        }
        std::fs::write(images.join("a10"), image("base", "raw")).expect("a file");
        error(&policy, 11).expect("eleven links");
        let said = error(&policy, 10).expect_err("too many");
        assert!(said.contains("more than 10 images"), "{said}");
    }
}

#[test]
fn a_backing_file_that_is_given_stands_for_the_one_in_the_image() {
    let folder = folder();
    let path = folder.path().join("images/top");
    std::fs::write(&path, image("base", "raw")).expect("a file");
    for (backing, name) in
        [(Some(("backing.driver", "null-co")), r#"{"driver": "null-co"}"#), (None, "null")]
    {
        let mut options = options(&path);
        match backing {
            Some((key, value)) => options.set(key, value),
            None => options.set("backing", oxblock_engine::options::Scalar::Null),
        }
        let looked = opened(WITH_LINKED, options, OpenPolicy::default(), async |_, graph, id| {
            assert!(graph.backing_overridden(id)?);
            assert_eq!(graph.image_backing(id), Some("base"));
            graph.names(id)?.filename()
        });
        let at = path.display();
        let whole = format!(
            r#"json:{{"backing": {name}, "driver": "linked", "file": {{"driver": "file", "filename": "{at}"}}}}"#
        );
        assert_eq!(looked.expect("it opens"), whole);
    }
}

#[test]
fn formats_are_guessed_for_tools_alone() {
    let folder = folder();
    let base = folder.path().join("images/base").display().to_string();
    let guess = |name: &str, read_only: bool, policy: OpenPolicy| {
        let mut options = DRIVERS.options_of_name(name).expect("a name");
        options.set("read-only", read_only);
        opened(WITH_LINKED, options, policy, async move |core, graph, id| {
            let node = graph.node(id)?.body.clone();
            let channel = core.open(&node).await?;
            let write = async |offset| {
                let data = core.arena().alloc(512, 512).expect("a buffer");
                channel.run(Op::write(offset, data)).await.result
            };
            let writes = (!read_only).then_some([write(0).await.is_ok(), write(512).await.is_ok()]);
            assert!(graph.was_probed(id));
            Ok((graph.node(id)?.driver, graph.take_warnings(), writes))
        })
    };
    let error = guess(&base, true, OpenPolicy::default()).expect_err("no guess").to_string();
    assert!(error.contains("the format is not guessed"), "{error}");
    let tools = OpenPolicy::of_tools;
    assert_eq!(guess(&base, true, tools()).expect("raw"), ("raw", vec![], None));
    let (driver, warnings, writes) = guess(&base, false, tools()).expect("raw");
    assert_eq!((driver, writes), ("raw", Some([false, true])));
    let words = format!("Image format was not specified for '{base}' and probing guessed raw.");
    assert!(warnings.len() == 1 && warnings[0].starts_with(&words), "{warnings:?}");
    // The backing file's format is guessed too, where the image does not say it.
    let top = folder.path().join("images/top");
    std::fs::write(&top, image("base", "")).expect("a file");
    let top = top.display().to_string();
    assert_eq!(guess(&top, true, tools()).expect("linked").0, "linked");
    let policy = OpenPolicy { probes: false, ..tools() };
    let error = opened(WITH_LINKED, options(Path::new(&top)), policy, async |_, _, _| Ok(()));
    let error = error.expect_err("no format").to_string();
    assert!(error.contains("does not say what format"), "{error}");
    std::fs::write(folder.path().join("images/base"), []).expect("a file");
    assert_eq!(guess(&base, true, tools()).expect("an empty file is raw").0, "raw");
}

/// The file was opened by a descriptor of the policy's, whose name is another file's by then.
#[test]
fn what_a_policy_found_is_the_same_file_after_a_reopen() {
    let folder = folder();
    let images = folder.path().join("images");
    let path = images.join("top");
    std::fs::write(&path, image("base", "raw")).expect("a file");
    let policy = with(ImageNames::Beneath(images));
    let opened = opened(WITH_LINKED, options(&path), policy, async |core, graph, id| {
        let backing = graph.backing(id).expect("a backing file").child;
        let node = graph.node(backing)?.body.clone();
        assert!(node.limits().read_only);
        let mut options = NodeOptions::new();
        options.set("node-name", node.name().to_string());
        options.set("read-only", false);
        graph.reopen(core, vec![options]).await?;
        assert!(!node.limits().read_only);
        let channel = core.open(&node).await?;
        let done = channel.run(Op::write(512, core.arena().alloc(512, 512)?)).await;
        done.result?;
        Ok(())
    });
    opened.expect("it is reopened");
    let base = std::fs::read(folder.path().join("images/base")).expect("the file");
    assert!(base[..512] == [3; 512] && base[512..1024] != [3; 512]);
}
