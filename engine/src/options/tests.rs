use super::*;

fn pairs(text: &str) -> NodeOptions {
    NodeOptions::from_key_values(text, Some("file")).expect(text)
}

fn json(text: &str) -> NodeOptions {
    NodeOptions::from_json(text).expect(text)
}

#[test]
fn pairs_are_read_as_qemu_reads_them() {
    for (text, same) in [
        ("", "{}"),
        ("a=1,b=2", r#"{"a": "1", "b": "2"}"#),
        ("disk0", r#"{"file": "disk0"}"#),
        (",", r#"{"file": ""}"#),
        ("a,,b,c=1", r#"{"file": "a,b", "c": "1"}"#),
        ("a=1,b", r#"{"a": "1", "b": "on"}"#),
        ("a=1,nob,c=2", r#"{"a": "1", "b": "off", "c": "2"}"#),
        ("a=x,,y,,", r#"{"a": "x,y,"}"#),
        ("a=x,,,b=y", r#"{"a": "x,", "b": "y"}"#),
        ("a=1,a=2", r#"{"a": "2"}"#),
        ("a==b,=5", r#"{"a": "=b", "": "5"}"#),
        ("a.b.c=1,", r#"{"a": {"b": {"c": "1"}}}"#),
    ] {
        assert_eq!(pairs(text), json(same), "{text}");
    }
}

#[test]
fn lists_and_objects_flatten_and_crumple() {
    let text = r#"{"children": [{"driver": "a"}, {"driver": "b"}], "x": {"1": 5}}"#;
    let options = json(text);
    let keys: Vec<&str> = options.keys().collect();
    assert_eq!(keys, ["children.0.driver", "children.1.driver", "x.1"]);
    assert_eq!(options.to_json().unwrap(), text);
    let error = |text| NodeOptions::from_json(text).unwrap_err().to_string();
    assert!(error(r#"{"a": {"b": 1}, "a.b": 2}"#).contains("'a.b' is given twice"));
    assert!(error(r#"{"a": []}"#).contains("'a' holds nothing"));
    assert!(pairs("a=1,a.b=2").to_json().is_err());
    let deep = format!("{}=1", ".".repeat(1000));
    assert!(NodeOptions::from_key_values(&deep, None).is_err());
}

#[test]
fn children_are_taken_out_with_all_that_is_beneath_them() {
    let mut options = pairs("file.driver=x,file.file.driver=y,file-2=z,filename=f,fil=1");
    assert_eq!(
        options.take_child("file").unwrap(),
        ChildOptions::Inline(pairs("driver=x,file.driver=y"))
    );
    assert_eq!(options, pairs("file-2=z,filename=f,fil=1"));
    assert_eq!(options.take_child("file").unwrap(), ChildOptions::Absent);
    options.set("backing", Scalar::Null);
    assert_eq!(options.take_child("backing").unwrap(), ChildOptions::None);
    assert_eq!(pairs("disk0").take_child("file").unwrap(), ChildOptions::Reference("disk0".into()));
    let both = pairs("disk0,file.size=1").take_child("file").unwrap_err().to_string();
    assert!(both.starts_with("Cannot reference an existing block device with additional options"));
}

#[test]
fn settings_have_the_declared_kinds() {
    const OPTIONS: &[OptionSpec] = &[
        OptionSpec::bool("zeroes", "").default("off"),
        OptionSpec::size("size", "").required(),
        OptionSpec::number("depth", 1, 64, ""),
        OptionSpec::choice("aio", &["threads", "native"], ""),
        OptionSpec::text("name", ""),
    ];
    let take = |text: &str| Settings::take(OPTIONS, &mut json(text));
    let settings = take(r#"{"size": "1k", "depth": 2, "aio": "native", "name": "x"}"#).unwrap();
    assert_eq!(settings.bool("zeroes"), Some(false));
    assert_eq!(settings.number("size"), Some(1024));
    assert_eq!(settings.number("depth"), Some(2));
    assert_eq!(settings.choice("aio"), Some("native"));
    assert_eq!(settings.text("name"), Some("x"));
    assert_eq!(settings.text("size"), None);
    assert_eq!(take(r#"{"size": 4096.0, "depth": null}"#).unwrap().number("size"), Some(4096));
    for (text, words) in [
        ("{}", "Parameter 'size' is missing"),
        (r#"{"size": true}"#, "Parameter 'size' expects a non-negative number below 2^64"),
        (r#"{"size": -1}"#, "Value '-1' is out of range for parameter 'size'"),
        (r#"{"size": 1, "zeroes": 1}"#, "Parameter 'zeroes' expects 'on' or 'off'"),
        (r#"{"size": 1, "depth": 65}"#, "Value '65' is out of range for parameter 'depth'"),
        (r#"{"size": 1, "depth": "many"}"#, "Parameter 'depth' expects a number"),
        (r#"{"size": 1, "aio": "x"}"#, "Parameter 'aio' does not accept value 'x'"),
        (r#"{"size": 1, "name": 5}"#, "Parameter 'name' expects a string"),
    ] {
        let error = take(text).unwrap_err().to_string();
        assert!(error.starts_with(words), "{text}: {error}");
    }
    let mut options = json(r#"{"size": 1, "sise": 2}"#);
    Settings::take(OPTIONS, &mut options).unwrap();
    assert_eq!(options.keys().collect::<Vec<_>>(), ["sise"]);
}

/// Texts of the characters and words that the parsers turn on.
fn random_text(random: &mut u64) -> String {
    const PARTS: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        ",,",
        "=",
        ".",
        "\"",
        "'",
        "\\",
        "\\u",
        "d800",
        "0041",
        "-",
        "1",
        "0",
        "1.5",
        "e",
        "k",
        "no",
        "null",
        "true",
        "driver",
        "file",
        "json:",
        " ",
        "ä",
        "\0",
        "\"a\"",
        "\"b\": ",
        "{\"c\": ",
        "18446744073709551615",
        "a=",
        "file.",
    ];
    let mut next = |below: usize| {
        // xorshift64 (Marsaglia).
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        (*random >> 16) as usize % below
    };
    (0..next(24)).map(|_| PARTS[next(PARTS.len())]).collect()
}

#[test]
fn parsers_never_panic_and_what_they_print_reads_the_same() {
    let seed = std::env::var("OXBLOCK_SEED").ok().and_then(|text| text.parse().ok());
    let rounds = std::env::var("OXBLOCK_FUZZ_SEEDS").ok().and_then(|text| text.parse().ok());
    let mut random: u64 = seed.unwrap_or(0x5eed_0001);
    let (mut objects, mut printed) = (0, 0);
    for _ in 0..rounds.unwrap_or(50_000) {
        let before = random;
        let text = random_text(&mut random);
        let _ = scalar::parse_size(&text).and(scalar::parse_number(&text));
        let options = [
            NodeOptions::from_json(&text),
            NodeOptions::from_json(&format!("{{\"a\": {text}}}")),
            NodeOptions::from_key_values(&text, Some("file")),
        ];
        for options in options.into_iter().flatten() {
            objects += 1;
            if let Ok(json) = options.to_json() {
                printed += 1;
                let again = NodeOptions::from_json(&json);
                assert_eq!(again.ok(), Some(options.clone()), "seed {before}: {text:?}");
            }
            if let Some(text) = options.to_key_values() {
                let again = NodeOptions::from_key_values(&text, None).expect("printed pairs");
                assert_eq!(again.to_key_values(), Some(text), "seed {before}");
            }
        }
    }
    assert!(objects > 1000 && printed > 500, "{objects} options, {printed} printed");
}
