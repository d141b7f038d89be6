//! Configuration as a person meets it: sources in order, all faults at once, nothing secret shown.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

const MACHINE: Machine = Machine { cores: 6, open_files_limit: 4096, memory_bytes: 4 << 30 };

fn set(pairs: &[&str]) -> Sources {
    Sources { set: pairs.iter().map(|pair| (*pair).to_owned()).collect(), ..Sources::default() }
}

fn config(pairs: &[&str]) -> Config {
    load(&set(pairs), MACHINE).unwrap().config
}

fn keys_of_problems(sources: &Sources) -> Vec<String> {
    let invalid = load(sources, MACHINE).unwrap_err();
    invalid.problems().iter().map(|problem| problem.key.clone()).collect()
}

#[test]
fn defaults_follow_the_machine_and_each_other() {
    let defaults = config(&[]);
    assert_eq!(defaults.shards.count, 3);
    assert_eq!(defaults.storage.open_files, 1024);
    assert_eq!(defaults.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(defaults.wal_dir, Path::new("./data/wal"));
    assert_eq!(config(&["data_dir=/x"]).wal_dir, Path::new("/x/wal"));
    assert_eq!(config(&["data_dir=/x", "wal_dir=/y"]).wal_dir, Path::new("/y"));
    assert_eq!(defaults.http.memory_bytes, 1 << 30);
    let little = Machine { memory_bytes: 128 << 20, ..MACHINE };
    let memory = |pairs: &[&str]| load(&set(pairs), little).unwrap().config.http.memory_bytes;
    assert_eq!(memory(&[]), 64 << 20);
    assert_eq!(memory(&["http.max_body_bytes=100 MiB"]), 200 << 20, "one must find room");
    assert_eq!(memory(&["http.memory_bytes=40 MiB"]), 40 << 20);
    let small = Machine { cores: 1, ..MACHINE };
    assert_eq!(load(&Sources::default(), small).unwrap().config.shards.count, 1);
    let large = Machine { cores: 128, ..MACHINE };
    assert_eq!(load(&Sources::default(), large).unwrap().config.shards.count, 8);
}

#[test]
fn later_sources_win() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    std::fs::write(
        &file,
        "data_dir = \"/file\"\nlog = \"warn\"\n[wal]\nfile_bytes = \"2 MiB\"\nmax_bytes = 8388608\n\
         [topics]\nauto_create = false\nmax_partitions = 77\n\
         [ws]\nallowed_origins = [\"http://a\"]\n",
    )
    .unwrap();
    let environment = [
        ("EDDYLINE_DATA_DIR", "/environment"),
        ("EDDYLINE_WAL__FILE_BYTES", "3 MiB"),
        ("EDDYLINE_TOPICS__MAX_PARTITIONS", "88"),
        ("EDDYLINE_URL", "http://elsewhere"),
        ("EDDYLINE_CUT_ROUNDS", "3"),
        ("EDDYLINE_NO_SKIP", "1"),
        ("EDDYLINE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("PATH", "/bin"),
    ];
    let sources = Sources {
        file: Some(file),
        environment: environment.map(|(name, value)| (name.into(), value.into())).to_vec(),
        set: vec![String::from("wal.file_bytes = 4 MiB"), String::from("data_dir=/set")],
        flags: vec![("data_dir", String::from("/flag"))],
    };
    let effective = load(&sources, MACHINE).unwrap();
    let config = &effective.config;
    assert_eq!(config.log.as_str(), "warn", "only the file says it");
    assert!(!config.topics.auto_create);
    assert_eq!(config.ws.allowed_origins, ["http://a"]);
    assert_eq!(config.topics.max_partitions, 88, "environment over file");
    assert_eq!(config.wal.file_bytes, 4 << 20, "--set over environment");
    assert_eq!(config.data_dir, Path::new("/flag"), "flag over --set");
    let printed = effective.to_toml();
    for line in [
        "data_dir = \"/flag\"  # from --data-dir",
        "topics.max_partitions = 88  # from EDDYLINE_TOPICS__MAX_PARTITIONS",
        "wal.file_bytes = \"4 MiB\"  # from --set",
        "topics.default_partitions = 4  # default",
    ] {
        assert!(printed.contains(line), "{line}\n{printed}");
    }
}

#[test]
fn every_fault_of_every_source_is_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    let text = "lisen = \"x\"\n[wal]\nfile_bytes = 1.5\n[nonsense]\n[topics]\nauto_create = 3\n";
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        file: Some(file),
        environment: vec![("EDDYLINE_RAFT__HEARTBEAT".into(), "soon".into())],
        set: ["http.max_records=0", "novalue", "max_body_bytes=1"].map(str::to_owned).to_vec(),
        flags: vec![("listen", String::from("here"))],
    };
    let keys: BTreeSet<String> = keys_of_problems(&sources).into_iter().collect();
    let expected = [
        "lisen",
        "wal.file_bytes",
        "nonsense",
        "topics.auto_create",
        "raft.heartbeat",
        "http.max_records",
        "novalue",
        "max_body_bytes",
        "listen",
    ];
    assert_eq!(keys, expected.map(str::to_owned).into());
    let told = load(&sources, MACHINE).unwrap_err().to_string();
    assert!(told.starts_with("the configuration has 9 problems:\n"), "{told}");
    assert!(told.contains("raft.heartbeat (from EDDYLINE_RAFT__HEARTBEAT): must be"), "{told}");
    assert!(told.contains("did you mean http.max_body_bytes?"), "{told}");
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    let sources = Sources { file: Some(file.clone()), ..Sources::default() };
    assert_eq!(keys_of_problems(&sources), ["--config"]);
    std::fs::write(&file, "listen = ").unwrap();
    assert_eq!(keys_of_problems(&sources), ["--config"]);
}

#[test]
fn settings_that_do_not_fit_together_are_refused() {
    let secret = "cluster.secret=0123456789abcdef0123456789abcdef";
    let cases: &[(&[&str], &str)] = &[
        (&["listen=0.0.0.0:8080"], "listen"),
        (&["listen=[::]:8080"], "listen"),
        (&["wal.file_bytes=1 GiB"], "wal.file_bytes"),
        (
            &["topics.default_partitions=20", "topics.max_partitions=10"],
            "topics.default_partitions",
        ),
        (&["topics.max_partitions=10001"], "topics.max_partitions"),
        (&["http.memory_bytes=8 MiB"], "http.memory_bytes"),
        (&["raft.heartbeat=300ms"], "raft.heartbeat"),
        (&["raft.election_max=400ms"], "raft.election_max"),
        (&["cluster.tls.cert=a", "cluster.tls.key=b"], "cluster.tls.cert"),
        (&["cluster.listen=127.0.0.1:9090"], "cluster.listen"),
        (&["cluster.initial=a:1"], "cluster.initial"),
        (&["cluster.join=a:1"], "cluster.join"),
        (&["cluster.listen=127.0.0.1:9090", secret, "cluster.initial=a:1,b:1"], "cluster.initial"),
        (
            &[
                "cluster.listen=127.0.0.1:9090",
                secret,
                "cluster.initial=127.0.0.1:9090",
                "cluster.join=b:1",
            ],
            "cluster.join",
        ),
    ];
    for (pairs, key) in cases {
        assert_eq!(keys_of_problems(&set(pairs)), [*key], "{pairs:?}");
    }
    let fine: &[&[&str]] = &[
        &["listen=0.0.0.0:8080", "insecure=true"],
        &["listen=[::1]:8080"],
        &["listen=127.0.0.2:0"],
        &["wal.file_bytes=1 GiB", "wal.max_bytes=2 GiB"],
        &["cluster.listen=127.0.0.1:9090", secret, "cluster.initial=127.0.0.1:9090,b:1"],
        &[
            "cluster.listen=0.0.0.0:9090",
            "cluster.tls.cert=a",
            "cluster.tls.key=b",
            "cluster.tls.ca=c",
            "cluster.join=b:1",
        ],
    ];
    for pairs in fine {
        assert!(load(&set(pairs), MACHINE).is_ok(), "{pairs:?}");
    }
}

#[test]
fn shards_are_at_least_as_many_as_first_members() {
    let members: Vec<String> = (1..=5).map(|n| format!("n{n}:9090")).collect();
    let initial = format!("cluster.initial={}", members.join(","));
    let secret = "cluster.secret=0123456789abcdef0123456789abcdef";
    let pairs =
        ["cluster.listen=127.0.0.1:9090", "cluster.advertise=n1:9090", secret, initial.as_str()];
    assert_eq!(config(&pairs).shards.count, 5);
}

#[test]
fn what_this_version_cannot_do_is_refused_and_not_ignored() {
    let pairs = ["metadata.url=postgres://u:secret@db/x"];
    let refused = load_supported(&set(&pairs), MACHINE).unwrap_err();
    assert_eq!(refused.problems().len(), 1);
    assert!(!refused.to_string().contains("secret"));
    // What would protect a cluster protects nothing here, so nobody may believe that it does.
    let secret = "cluster.secret=0123456789abcdef0123456789abcdef";
    let tls = ["cluster.tls.cert=a", "cluster.tls.key=b", "cluster.tls.ca=c"];
    for (pairs, key) in [(&[secret][..], "cluster.secret"), (&tls[..], "cluster.tls.cert")] {
        let refused = load_supported(&set(pairs), MACHINE).unwrap_err();
        let keys: Vec<_> = refused.problems().iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, [key]);
    }
    assert!(load_supported(&set(&[]), MACHINE).is_ok());
}

#[test]
fn what_is_not_available_is_told_together_with_what_is_wrong() {
    let pairs = ["listen=x", "metadata.url=postgres://u@h/d"];
    let refused = load_supported(&set(&pairs), MACHINE).unwrap_err();
    let keys: Vec<_> = refused.problems().iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["listen", "metadata.url"]);
}

#[test]
fn secrets_are_never_shown() {
    let secret = "cluster.secret=hunter2-hunter2-hunter2-hunter2-";
    let pairs = ["cluster.listen=127.0.0.1:9090", secret, "metadata.url=postgres://u:hunter2@h/d"];
    let effective = load(&set(&pairs), MACHINE).unwrap();
    assert!(!effective.to_toml().contains("hunter2"), "{}", effective.to_toml());
    assert!(!format!("{:?}", effective.config.cluster).contains("hunter2"));
    let short = load(&set(&["cluster.secret=hunter2"]), MACHINE).unwrap_err().to_string();
    assert!(!short.contains("hunter2"), "{short}");
    let wrong = load(&set(&["metadata.url=mysql://u:hunter2@h/d"]), MACHINE).unwrap_err();
    assert!(!wrong.to_string().contains("hunter2"), "{wrong}");
}

#[test]
fn what_config_check_prints_is_read_back_unchanged() {
    let pairs = [
        "http.request_timeout=1500ms",
        "wal.file_bytes=1048577",
        "log=eddyline[{a=\"b\"}]=info",
        "shards.count=7",
        "ws.allowed_origins=http://a,https://b",
        "cluster.snapshot_rate=5 MiB",
    ];
    let first = load(&set(&pairs), MACHINE).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    std::fs::write(&file, first.to_toml()).unwrap();
    let other = Machine { cores: 1, open_files_limit: 100, ..MACHINE };
    let again = load(&Sources { file: Some(file), ..Sources::default() }, other).unwrap();
    assert_eq!(again.config, first.config);
}

#[test]
fn keys_are_unique_and_documented() {
    let keys: BTreeSet<&str> = settings::all().map(|setting| setting.key).collect();
    assert_eq!(keys.len(), settings::all().count());
    let help = help();
    for key in keys {
        assert!(help.contains(&format!("  {key} ")), "{key}");
    }
}

#[test]
fn a_node_in_a_directory_keeps_everything_there() {
    let config = Config::in_dir(Path::new("/somewhere"), MACHINE);
    assert_eq!(config.wal_dir, Path::new("/somewhere/wal"));
    assert_eq!(config.listen.port(), 0);
    assert_eq!(config.http.request_timeout, Duration::from_secs(30));
}
