use proptest::prelude::*;

use super::*;
use crate::catalogue::SETTINGS;

fn problems(text: &str) -> Vec<String> {
    match Profile::parse("test", text) {
        Ok(_) => Vec::new(),
        Err(ProfileError::Problems { problems, .. }) => {
            problems.iter().map(ToString::to_string).collect()
        }
    }
}

#[test]
fn every_profile_that_comes_along_is_right() {
    for (name, text) in BUILT_IN {
        let profile = Profile::parse(name, text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(profile.name, *name);
        assert!(!profile.wanted.is_empty());
        assert_eq!(Profile::built_in(name), Some(profile));
    }
    assert_eq!(Profile::built_in("nothing"), None);
}

#[test]
fn profiles_in_the_folder_and_in_the_program_are_the_same() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../firmware-config");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
        .collect();
    files.sort();
    let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    assert_eq!(files, names);
}

#[test]
fn a_profile_rests_on_another_and_changes_it() {
    let text = "schema = 1\nsummary = \"s\"\nbased_on = \"default\"\n[nvme]\n\
                lba_data_bytes = { want = 512, why = \"w\" }\n";
    let profile = Profile::parse("mine", text).unwrap();
    let default = Profile::built_in("default").unwrap();
    assert_eq!(profile.name, "mine");
    assert_eq!(profile.summary, "s");
    assert_eq!(profile.wanted.len(), default.wanted.len());
    let wanted = profile.value("nvme", "lba_data_bytes").unwrap();
    assert_eq!(
        (&wanted.value, wanted.why.as_str()),
        (&Value::Number(512), "w")
    );
    assert_eq!(
        profile.value("boot", "first"),
        default.value("boot", "first")
    );
}

#[test]
fn all_problems_are_listed_with_their_lines() {
    let text = "schema = 2
summary = \"\"
besed_on = \"default\"
based_on = \"defalt\"
[nvme]
lba_data_byte = { want = 4096, why = \"w\" }
power_state = { want = 32, why = \"w\" }
write_cache = { want = \"on\", why = \"w\" }
arbitration_burst = { want = 3 }
lba_metadata_bytes = 0
[nvm]
[[nvme.firmware]]
modle = \"x\"
want = \"1\"
[cpu]
governor = { want = \"fast\", why = \"w\", wy = 1 }
features = { want = [], why = \"w\" }
[nic]
ports = \"eth0\"
";
    let wanted = [
        "line 1: schema must be 1, the one that this program knows",
        "line 1: summary is missing: say in a sentence what it is for",
        "line 2: summary must not be empty",
        "line 3: there is no key \"besed_on\"; is \"based_on\" meant?",
        "line 4: based_on must be one of default, latency, lossless, lossy, roce, vm",
        "line 6: there is no setting of [nvme] \"lba_data_byte\"; is \"lba_data_bytes\" meant?",
        "line 7: nvme.power_state: want must be a number from 0 to 31",
        "line 8: nvme.write_cache: want must be true or false",
        "line 9: nvme.arbitration_burst: why is missing: nobody keeps a setting without a reason",
        "line 10: nvme.lba_metadata_bytes must be a table: { want = ..., why = \"...\" }",
        "line 11: there is no key \"nvm\"; is \"nvme\" meant?",
        "line 12: nvme.firmware: model is missing",
        "line 12: nvme.firmware: why is missing: nobody keeps a setting without a reason",
        "line 13: there is no key of nvme.firmware \"modle\"; is \"model\" meant?",
        "line 16: cpu.governor: want must be one of \"performance\", \"powersave\", \"schedutil\", \
         \"ondemand\", \"conservative\", \"userspace\"",
        "line 16: there is no key of cpu.governor \"wy\"; is \"why\" meant?",
        "line 17: cpu.features must have 1 to 256 entries",
        "line 19: nic.ports must be a list of texts, not a text",
    ];
    let mut found = problems(text);
    let mut wanted = wanted.map(str::to_owned).to_vec();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    let found = problems("schema = 1\nsummary = \n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("line 2: "), "{found:?}");
}

#[test]
fn a_huge_file_is_refused() {
    let text = "#".repeat(300 << 10);
    assert_eq!(problems(&text), ["line 1: it is longer than 262144 bytes"]);
}

#[test]
fn models_are_matched_with_stars() {
    let rule = |matches: &str| FirmwareRule {
        matches: matches.to_owned(),
        revision: String::new(),
        why: String::new(),
    };
    for (pattern, model, fits) in [
        ("X", "X", true),
        ("X", "XY", false),
        ("X*", "XY", true),
        ("*Y", "XY", true),
        ("X*Z*", "X12Z", true),
        ("X*Z*", "X12", false),
        ("a*a", "a", false),
        ("*", "", true),
        ("", "x", false),
        ("é*", "éa", true),
    ] {
        assert_eq!(rule(pattern).is_for(model), fits, "{pattern} {model}");
    }
}

#[test]
fn settings_have_names_of_their_own_and_a_sentence() {
    for (at, one) in SETTINGS.iter().enumerate() {
        let twin = SETTINGS[..at].iter().any(|each| each.name() == one.name());
        assert!(!twin, "{}", one.name());
        assert!(
            one.about.ends_with('.') && !one.about.contains('|'),
            "{}",
            one.name()
        );
    }
}

proptest! {
    #[test]
    fn any_text_is_a_profile_or_problems(text in ".{0,300}") {
        let _ = Profile::parse("x", &text);
    }

    #[test]
    fn a_profile_with_any_piece_replaced_never_panics(
        at in 0usize..2000, len in 0usize..40, piece in "[\\PC\n=\\[\\]{}\"]{0,12}",
    ) {
        let text = BUILT_IN[0].1;
        let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        let end = (at + len).min(text.len());
        let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap();
        let changed = format!("{}{piece}{}", &text[..at], &text[end..]);
        let _ = Profile::parse("x", &changed);
    }

    #[test]
    fn any_pattern_fits_or_not(pattern in "[ab*é]{0,8}", model in "[abé]{0,8}") {
        let rule = FirmwareRule { matches: pattern.clone(), revision: String::new(), why: String::new() };
        let _ = rule.is_for(&model);
        if !pattern.contains('*') {
            prop_assert_eq!(rule.is_for(&model), pattern == model);
        }
    }
}
