//! Encrypted images: they behave like others, keep their keys through power cuts, and are refused when they lie.

use std::collections::BTreeMap;
use std::sync::Arc;

use diskette::drivers::{BackingChoice, OpenOptions};
use diskette::engine::AmendRequest;
use diskette::options::Options;
use diskette::{Budgets, ErrorKind, Image, Memory, Node, Preallocation, Range, Result, WriteFlags, block_on};

use crate::support::{self, Random, TestNode, create, create_as, keyring, open, read, with_files, write};

const SIZE: u64 = 100 << 10;

fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect()
}

/// A LUKS volume, made with these options besides secret and time.
fn luks(more: &[(&str, &str)]) -> Vec<u8> {
    let file = Memory::new(Vec::new());
    let all = [&[("key-secret", "s"), ("iter-time", "1")], more].concat();
    create_as("luks", file.clone(), SIZE, &options(&all), None).expect("the options are valid");
    file.to_vec()
}

/// Options for a LUKS volume, or with `encrypt.` for a qcow2 image.
fn keyed(prefix: &str, secret: &str, base: OpenOptions) -> OpenOptions {
    let driver_options = options(&[(&format!("{prefix}key-secret"), secret)]);
    OpenOptions { driver_options, ..base }
}

fn with_secret(name: &str, base: OpenOptions) -> OpenOptions {
    keyed("", name, base)
}

fn readable() -> OpenOptions {
    with_secret("s", support::readable())
}

fn writable() -> OpenOptions {
    with_secret("s", support::writable())
}

fn amend(image: &Image, pairs: &[(&str, &str)], force: bool) -> Result<()> {
    block_on(image.amend(&AmendRequest { options: options(pairs), force, ..AmendRequest::default() }))
}

#[test]
fn histories_of_a_volume_behave_like_a_vector() {
    for (index, more) in [
        &[][..],
        &[("cipher-mode", "cbc"), ("ivgen-alg", "essiv")],
        &[("cipher-mode", "ctr"), ("cipher-alg", "cast5-128")],
        &[("cipher-mode", "ecb"), ("cipher-alg", "serpent-192")],
        &[("cipher-alg", "sm4"), ("hash-alg", "sm3")],
    ]
    .into_iter()
    .enumerate()
    {
        let mut random = Random::new(index as u64);
        let file = Memory::new(luks(more));
        let mut model = vec![0; SIZE as usize];
        for round in 0..2 {
            let image = open(file.clone(), &writable()).unwrap();
            if round == 0 {
                block_on(image.write_zeroes(Range::new(0, SIZE), WriteFlags::default())).unwrap();
            }
            for _ in 0..60 {
                let range = random.range(SIZE, 9000, 512);
                let part = range.start as usize..range.end() as usize;
                match random.below(6) {
                    0..=2 => {
                        let bytes: Vec<u8> = (0..range.len).map(|_| random.next() as u8).collect();
                        write(&*image, range.start, &bytes).unwrap();
                        model[part].copy_from_slice(&bytes);
                    }
                    3 => {
                        block_on(image.write_zeroes(range, WriteFlags::default())).unwrap();
                        model[part].fill(0);
                    }
                    4 => block_on(image.discard(range)).unwrap(),
                    _ => assert!(read(&*image, range.start, range.len as usize).unwrap() == model[part], "{range:?}"),
                }
            }
            assert!(read(&*image, 0, SIZE as usize).unwrap() == model, "{more:?}");
            block_on(image.close()).unwrap();
        }
        let stored = file.to_vec();
        let data = &stored[stored.len() - SIZE as usize..];
        let plain = model.chunks(512).zip(data.chunks(512)).filter(|(one, other)| one == other).count();
        assert_eq!(plain, 0, "{more:?}: sectors that are stored as they are");
    }
}

#[test]
fn threads_that_share_sectors_keep_their_own_bytes() {
    let image = open(Memory::new(luks(&[])), &writable()).unwrap();
    const THREADS: u64 = 4;
    const STRIPE: u64 = 100;
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let image = &image;
            scope.spawn(move || {
                let mut random = Random::new(number);
                for _ in 0..300 {
                    let at = (random.below(40) * THREADS + number) * STRIPE;
                    let bytes: Vec<u8> = (0..STRIPE).map(|_| random.next() as u8).collect();
                    write(&**image, at, &bytes).unwrap();
                    assert!(read(&**image, at, STRIPE as usize).unwrap() == bytes, "thread {number} at {at}");
                }
            });
        }
    });
}

#[test]
fn a_volume_grows_and_shrinks_with_its_file() {
    let file = Memory::new(luks(&[]));
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 0, &[7; 5000]).unwrap();
    block_on(image.resize(SIZE * 2, Preallocation::Off)).unwrap();
    write(&*image, SIZE * 2 - 700, &[8; 700]).unwrap();
    block_on(image.resize(SIZE * 2 - 512, Preallocation::Off)).unwrap();
    assert_eq!((image.info().length, file.to_vec().len() as u64), (SIZE * 2 - 512, SIZE * 2 - 512 + 2_068_480));
    assert_eq!(read(&*image, 0, 5000).unwrap(), [7; 5000]);
    assert_eq!(read(&*image, SIZE * 2 - 700, 188).unwrap(), [8; 188]);
}

#[test]
fn what_a_new_volume_takes_up_is_known_before() {
    for more in [&[][..], &[("cipher-alg", "aes-128")], &[("cipher-alg", "cast5-128"), ("cipher-mode", "cbc")]] {
        let bytes = diskette::formats::luks::measure(SIZE, &options(more)).unwrap();
        assert_eq!(luks(more).len() as u64, bytes, "{more:?}");
    }
    assert_eq!(diskette::formats::luks::measure(u64::MAX, &options(&[])).unwrap_err().kind(), ErrorKind::TooLarge);
}

#[test]
fn without_the_right_key_there_is_one_clear_message_and_no_data() {
    let file = Memory::read_only(luks(&[]), "vol");
    let message = |options: &OpenOptions| open(file.clone(), options).unwrap_err().problem().to_string();
    assert_eq!(message(&with_secret("other", readable())), "Invalid password, cannot unlock any keyslot");
    assert_eq!(message(&with_secret("nobody", readable())), "No secret with id 'nobody'");
    let writable_without = OpenOptions { driver_options: BTreeMap::new(), ..writable() };
    assert_eq!(message(&writable_without), "Parameter 'key-secret' is required for cipher");
    // To look at, it needs no key.
    let image = open(file, &OpenOptions::default()).unwrap();
    assert_eq!((image.missing_key(), image.info().length), (Some("key-secret"), SIZE));
    let error = read(&*image, 0, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("encrypted and no key was given"), "{error}");
    assert!(!format!("{:?} {error:?}", readable()).contains("sesame"));
}

#[test]
fn headers_that_lie_are_refused_with_the_place() {
    let good = luks(&[("cipher-alg", "aes-128")]);
    let slot = |index: usize, field: usize| 208 + 48 * index + field;
    let cases: &[(usize, &[u8], &str)] = &[
        (0, b"LUKZ", "Volume is not in LUKS format"),
        (6, &2u16.to_be_bytes(), "LUKS version 2 is not supported"),
        (6, &9u16.to_be_bytes(), "LUKS version 9 is not supported"),
        (8, &[b'a'; 32], "cipher name is not NUL terminated"),
        (40, &[b'x'; 32], "cipher mode is not NUL terminated"),
        (72, &[b'x'; 32], "hash spec is not NUL terminated"),
        (104, &1u32.to_be_bytes(), "payload is overlapping with the header"),
        (104, &500u32.to_be_bytes(), "Keyslot 1 is overlapping with the encrypted payload"),
        (104, &u32::MAX.to_be_bytes(), "beyond the end of the file"),
        (108, &0u32.to_be_bytes(), "the volume key has 0 bytes, expected 1 to 64"),
        (108, &u32::MAX.to_be_bytes(), "the volume key has 4294967295 bytes"),
        (164, &0u32.to_be_bytes(), "key iteration count is zero"),
        (slot(0, 0), &1u32.to_be_bytes(), "Keyslot 0 state (active/disable) is corrupted"),
        (slot(0, 4), &0u32.to_be_bytes(), "Keyslot 0 iteration count is zero"),
        (slot(0, 40), &7u32.to_be_bytes(), "Keyslot 0 is overlapping with the LUKS header"),
        (slot(2, 40), &u32::MAX.to_be_bytes(), "Keyslot 2 is overlapping with the encrypted payload"),
        (slot(2, 40), &8u32.to_be_bytes(), "Keyslots 0 and 2 are overlapping in the header"),
        (slot(7, 44), &4001u32.to_be_bytes(), "Keyslot 7 is corrupted (stripes 4001 != 4000)"),
    ];
    for (at, patch, expected) in cases {
        let mut bytes = good.clone();
        bytes[*at..*at + patch.len()].copy_from_slice(patch);
        for base in [readable(), OpenOptions { structure_only: true, ..OpenOptions::default() }] {
            let options = OpenOptions { format: Some("luks".into()), ..base };
            let error = open(Memory::read_only(bytes.clone(), "vol"), &options).unwrap_err();
            assert!(error.to_string().contains(expected), "{at}: {error}");
            assert!(error.context().offset.is_some(), "{at}: {error}");
            assert_eq!(error.context().path.as_deref(), Some("vol"));
        }
    }
    for length in [0, 5, 7, 207, 208, 591, 592, 4096, 100_000] {
        let options = OpenOptions { format: Some("luks".into()), ..readable() };
        let error = open(Memory::new(&good[..length]), &options).unwrap_err();
        assert!(error.context().offset.is_some(), "{length}: {error}");
    }
}

#[test]
fn a_qcow2_image_that_lies_about_its_encryption_header_is_refused_with_the_place() {
    let good = create(SIZE, ENCRYPTED);
    let pointer = good.windows(4).position(|kind| kind == [0x05, 0x37, 0xbe, 0x77]).unwrap() + 8;
    let header = u64::from_be_bytes(good[pointer..pointer + 8].try_into().unwrap()) as usize;
    let end = good.len() as u64;
    let cases: &[(&str, usize, &[u8])] = &[
        ("nowhere", pointer, &(u64::MAX << 12).to_be_bytes()),
        ("behind the end", pointer, &(end.next_multiple_of(4096)).to_be_bytes()),
        ("not at a cluster", pointer, &(header as u64 + 512).to_be_bytes()),
        ("the image itself", pointer, &0u64.to_be_bytes()),
        ("of no length", pointer + 8, &0u64.to_be_bytes()),
        ("of every length", pointer + 8, &u64::MAX.to_be_bytes()),
        ("longer than the file", pointer + 8, &end.to_be_bytes()),
        ("with key material nowhere", header + 208 + 40, &u32::MAX.to_be_bytes()),
        ("that counts on nothing", header + 108, &0u32.to_be_bytes()),
    ];
    for (what, at, patch) in cases {
        let mut bytes = good.clone();
        bytes[*at..*at + patch.len()].copy_from_slice(patch);
        let error = open(Memory::new(bytes), &keyed("encrypt.", "s", readable())).expect_err(what);
        assert!(error.context().offset.is_some(), "{what}: {error}");
    }
    for iterations in [header + 164, header + 212] {
        let mut bytes = good.clone();
        bytes[iterations..iterations + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        let error = open(Memory::new(bytes), &keyed("encrypt.", "s", readable())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OverBudget, "{error}");
    }
}

#[test]
fn algorithms_that_are_not_known_are_named_and_the_header_still_described() {
    for (at, name, expected) in [
        (8, "rot13\0", "Algorithm 'rot13' with key size 32 bytes not supported"),
        (40, "xyz-plain\0", "Cipher mode 'xyz' not supported"),
        (40, "cbc-magic\0", "IV generator 'magic' not supported"),
        (40, "cbc-essiv:crc\0", "Hash algorithm 'crc' not supported"),
        (40, "cbc-essiv\0", "Missing IV generator hash specification"),
        (40, "cbc\0", "Unexpected cipher mode string format 'cbc'"),
        (72, "crc32\0", "Hash algorithm 'crc32' not supported"),
    ] {
        let mut bytes = luks(&[("cipher-mode", "cbc")]);
        bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        let file = Memory::new(bytes);
        let error = open(file.clone(), &readable()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        open(file, &OpenOptions { structure_only: true, ..OpenOptions::default() }).unwrap().describe().unwrap();
    }
}

#[test]
fn a_header_that_asks_for_endless_work_is_over_budget() {
    for at in [164, 212] {
        let mut bytes = luks(&[]);
        bytes[at..at + 4].copy_from_slice(&12_000_001u32.to_be_bytes());
        let error = open(Memory::new(bytes.clone()), &readable()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OverBudget);
        assert!(error.to_string().contains("12000001 iterations"), "{error}");
        assert!(error.to_string().contains("the budget is 12000000"), "{error}");
        // Looking needs no work.
        open(Memory::new(bytes), &OpenOptions::default()).unwrap();
    }
    let budgets = Budgets { key_iterations: 999, ..Budgets::default() };
    let error = open(Memory::new(luks(&[])), &OpenOptions { budgets, ..readable() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OverBudget);
}

#[test]
fn keys_are_added_and_erased_as_asked_and_the_last_one_only_by_force() {
    for (format, prefix) in [("luks", ""), ("qcow2", "encrypt.")] {
        let file = match format {
            "luks" => Memory::new(luks(&[])),
            _ => Memory::new(create(SIZE, ENCRYPTED)),
        };
        let opens = |secret: &str| open(file.clone(), &keyed(prefix, secret, readable())).is_ok();
        let image = open(file.clone(), &keyed(prefix, "s", writable())).unwrap();
        let change = |pairs: &[(&str, &str)], force: bool| {
            let pairs: Vec<(String, &str)> =
                pairs.iter().map(|(name, value)| (format!("{prefix}{name}"), *value)).collect();
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            amend(&image, &pairs, force).map_err(|error| error.problem().to_string())
        };
        write(&*image, 3000, &[9; 3000]).unwrap();
        let fails = |pairs: &[(&str, &str)], message: &str| {
            let error = change(pairs, false).unwrap_err();
            assert!(error.contains(message), "{pairs:?}: {error}");
        };
        change(&[("state", "active"), ("new-secret", "other"), ("keyslot", "5"), ("iter-time", "1")], false).unwrap();
        change(&[("state", "active"), ("new-secret", "third"), ("iter-time", "1")], false).unwrap();
        assert!(opens("s") && opens("other") && opens("third"));
        fails(
            &[("state", "active"), ("new-secret", "third"), ("keyslot", "5")],
            "Refusing to overwrite active keyslot 5",
        );
        fails(&[("state", "active")], "'new-secret' is required");
        fails(&[("state", "active"), ("new-secret", "s"), ("keyslot", "8")], "Invalid keyslot 8");
        fails(&[("state", "inactive"), ("keyslot", "7")], "already erased");
        fails(
            &[("state", "inactive"), ("keyslot", "5"), ("old-secret", "s")],
            "doesn't contain the given old password",
        );
        fails(&[("state", "inactive")], "either explicit keyslot index");
        fails(&[("state", "maybe")], "'state' does not accept value 'maybe'");
        fails(&[("keyslot", "1")], "'state' is missing");
        change(&[("state", "inactive"), ("old-secret", "s")], false).unwrap();
        change(&[("state", "inactive"), ("keyslot", "5")], false).unwrap();
        assert!(!opens("s") && !opens("other") && opens("third"));
        fails(&[("state", "inactive"), ("old-secret", "other")], "No keyslots match");
        fails(&[("state", "inactive"), ("old-secret", "third")], "All the active keyslots match");
        fails(&[("state", "inactive"), ("keyslot", "1")], "Attempt to erase the only active keyslot 1");
        block_on(image.close()).unwrap();
        // Whoever opened with the key that is left can go on.
        let image = open(file.clone(), &keyed(prefix, "third", writable())).unwrap();
        let pairs = ["state", "new-secret", "iter-time"].map(|name| format!("{prefix}{name}"));
        amend(&image, &[(&pairs[0], "active"), (&pairs[1], "s"), (&pairs[2], "1")], false).unwrap();
        assert!(opens("s"));
        assert_eq!(read(&*image, 3000, 3000).unwrap(), [9; 3000]);
        for slot in ["0", "1"] {
            amend(&image, &[(&pairs[0], "inactive"), (&format!("{prefix}keyslot"), slot)], true).unwrap();
        }
        assert!(!opens("s") && !opens("third"));
    }
}

const ENCRYPTED: &[(&str, &str)] =
    &[("encrypt.format", "luks"), ("encrypt.key-secret", "s"), ("encrypt.iter-time", "1"), ("cluster_size", "4k")];

#[test]
fn a_power_cut_while_keys_change_leaves_a_key_that_opens() {
    let node = TestNode::new(luks(&[("cipher-alg", "aes-128")]));
    let image = open(node.clone(), &writable()).unwrap();
    write(&*image, 0, &[9; 3000]).unwrap();
    block_on(image.flush()).unwrap();
    let mut random = Random::new(3);
    let mut cut = |change: &[(&str, &str)], force: bool, stay: &[&str]| {
        node.record();
        let image = open(node.clone(), &with_secret(stay[0], writable())).unwrap();
        amend(&image, change, force).unwrap();
        let history = node.history();
        assert!(history.len() >= 4);
        for (moment, snapshot) in history.iter().enumerate() {
            for keep_of_8 in [0, 4, 8] {
                let file = Memory::new(snapshot.survive(&mut random, keep_of_8));
                let image = stay.iter().find_map(|secret| open(file.clone(), &with_secret(secret, readable())).ok());
                let image = image.unwrap_or_else(|| panic!("{change:?} moment {moment}: no key is left"));
                assert_eq!(read(&*image, 0, 3000).unwrap(), [9; 3000], "{change:?} moment {moment}");
            }
        }
    };
    let active = |secret, slot| [("state", "active"), ("new-secret", secret), ("keyslot", slot), ("iter-time", "1")];
    cut(&active("other", "1"), false, &["s"]);
    cut(&active("third", "1"), true, &["other", "third"]);
    cut(&active("other", "6"), false, &["third"]);
    cut(&[("state", "inactive"), ("old-secret", "third")], false, &["s"]);
    cut(&[("state", "inactive"), ("keyslot", "0")], false, &["other"]);
    // The only one, which the boundary of two sectors runs through.
    cut(&active("third", "6"), true, &["other", "third"]);
    let slots = node.bytes()[208..592].chunks(48).map(|slot| slot[0..4] == [0, 0xac, 0x71, 0xf3]).collect::<Vec<_>>();
    assert_eq!(slots.iter().filter(|active| **active).count(), 1);
    assert!(slots[6]);
}

#[test]
fn key_material_is_never_written_outside_of_the_header() {
    let bytes = create(SIZE, ENCRYPTED);
    let at = bytes.windows(6).position(|window| window == b"LUKS\xba\xbe").unwrap();
    // A free slot, and the data behind it, which is nobody's in qcow2, somewhere in the file behind the header.
    let mut lying = bytes;
    let header = u64::try_from(2_068_480 / 512).unwrap() as u32;
    lying[at + 104..at + 108].copy_from_slice(&(header + 2000).to_be_bytes());
    lying[at + 208 + 48 + 40..at + 208 + 48 + 44].copy_from_slice(&(header + 8).to_be_bytes());
    let file = Memory::new(lying);
    let image = open(file.clone(), &keyed("encrypt.", "s", writable())).unwrap();
    write(&*image, 0, &[7; SIZE as usize]).unwrap();
    block_on(image.flush()).unwrap();
    for pairs in [
        &[("encrypt.state", "active"), ("encrypt.new-secret", "other"), ("encrypt.keyslot", "1")][..],
        &[("encrypt.state", "inactive"), ("encrypt.keyslot", "1")],
    ] {
        let error = amend(&image, pairs, true).unwrap_err();
        assert!(error.to_string().contains("Keyslot 1 lies outside"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    assert_eq!(read(&*image, 0, SIZE as usize).unwrap(), [7; SIZE as usize]);
    assert!(block_on(image.check()).unwrap().is_clean());
}

#[test]
fn a_power_cut_while_an_image_is_made_leaves_no_image_or_a_whole_one() {
    for format in ["luks", "qcow2"] {
        let node = TestNode::new(Vec::new());
        node.record();
        let pairs = if format == "luks" { &[("key-secret", "s"), ("iter-time", "1")][..] } else { ENCRYPTED };
        create_as(format, node.clone(), SIZE, &options(pairs), None).unwrap();
        let mut random = Random::new(5);
        for snapshot in node.history() {
            let bytes = snapshot.survive(&mut random, 4);
            if bytes.starts_with(b"LUKS") || bytes.starts_with(b"QFI") {
                let prefix = if format == "luks" { "" } else { "encrypt." };
                let options = keyed(prefix, "s", readable());
                open(Memory::new(bytes), &OpenOptions { format: Some(format.into()), ..options }).unwrap();
            }
        }
    }
}

#[test]
fn the_header_may_be_a_file_of_its_own() {
    let header = Memory::new(Vec::new());
    let pairs = [("key-secret", "s"), ("iter-time", "1"), ("detached-header", "on")];
    create_as("luks", header.clone(), SIZE, &options(&pairs), None).unwrap();
    assert_eq!(header.to_vec().len(), 2_068_480);
    let data = Memory::new(vec![0; SIZE as usize]);
    let with_header = |base: OpenOptions| {
        let children = vec![("header", header.clone() as Arc<dyn Node>)];
        OpenOptions { format: Some("luks".into()), children, ..base }
    };
    let image = open(data.clone(), &with_header(writable())).unwrap();
    assert_eq!(image.info().length, SIZE);
    write(&*image, SIZE - 100, &[3; 100]).unwrap();
    amend(&image, &[("state", "active"), ("new-secret", "other"), ("iter-time", "1")], false).unwrap();
    block_on(image.close()).unwrap();
    assert_eq!(data.to_vec().len() as u64, SIZE);
    let image = open(data, &with_header(with_secret("other", readable()))).unwrap();
    assert_eq!(read(&*image, SIZE - 100, 100).unwrap(), [3; 100]);
    // On its own the header is not a disk.
    let error = open(header, &readable()).unwrap_err();
    assert!(error.to_string().contains("payload is overlapping with the header"), "{error}");
}

#[test]
fn each_image_of_a_chain_has_its_own_key() {
    let base = Memory::new(create(SIZE, ENCRYPTED));
    let image = open(base.clone(), &keyed("encrypt.", "s", writable())).unwrap();
    write(&*image, 0, &[1; 50_000]).unwrap();
    block_on(image.close()).unwrap();
    let mut pairs = ENCRYPTED.to_vec();
    pairs[1].1 = "other";
    pairs.extend([("backing_file", "base"), ("backing_fmt", "qcow2")]);
    let top = Memory::new(create(SIZE, &pairs));
    let of_base = |secret: &str| BackingChoice::With(Options::parse(&format!("encrypt.key-secret={secret}")).unwrap());
    let all = OpenOptions {
        backing: of_base("s"),
        ..with_files(
            keyed("encrypt.", "other", writable()),
            &[("base", Memory::read_only(base.to_vec(), "base") as Arc<dyn Node>)],
        )
    };
    let image = open(top.clone(), &all).unwrap();
    write(&*image, 10_001, &[2; 3]).unwrap();
    assert_eq!(read(&*image, 10_000, 5).unwrap(), [1, 2, 2, 2, 1]);
    block_on(image.close()).unwrap();
    assert!(block_on(image.check()).unwrap().is_clean());
    let error = open(top, &OpenOptions { backing: of_base("third"), ..all }).unwrap_err();
    assert!(error.to_string().contains("Invalid password"), "{error}");
}

#[test]
fn the_header_in_a_qcow2_image_is_never_overwritten() {
    let bytes = create(SIZE, ENCRYPTED);
    let at = bytes.windows(6).position(|window| window == b"LUKS\xba\xbe").unwrap();
    let file = Memory::new(bytes.clone());
    let image = open(file.clone(), &keyed("encrypt.", "s", writable())).unwrap();
    write(&*image, 0, &[7; SIZE as usize]).unwrap();
    block_on(image.close()).unwrap();
    assert!(file.to_vec()[at..at + 2_068_480] == bytes[at..at + 2_068_480]);
    // Nor when the refcounts lie about it.
    let mut lying = bytes;
    let table = u64::from_be_bytes(lying[48..56].try_into().unwrap()) as usize;
    let block = u64::from_be_bytes(lying[table..table + 8].try_into().unwrap()) as usize;
    let first = at / 4096;
    lying[block + 2 * first..block + 2 * (first + 20)].fill(0);
    let image = open(Memory::new(lying), &keyed("encrypt.", "s", writable())).unwrap();
    let error = write(&*image, 0, &[7; 60_000]).unwrap_err();
    assert!(error.to_string().contains("overlap") || error.kind() == ErrorKind::Corrupt, "{error}");
}

#[test]
fn an_image_with_an_encryption_header_is_never_taken_for_a_plain_one() {
    for method in [0u32, 1] {
        let mut bytes = create(SIZE, ENCRYPTED);
        bytes[32..36].copy_from_slice(&method.to_be_bytes());
        let error = open(Memory::new(bytes), &keyed("encrypt.", "s", readable())).unwrap_err();
        assert!(error.to_string().contains("CRYPTO header extension only expected"), "{error}");
    }
}

#[test]
fn a_new_key_needs_random_numbers_of_the_host() {
    let keyring = diskette::Keyring::of([("s", diskette::Secret::new(*b"x"))]);
    let create = diskette::drivers::Drivers::all().by_name("luks").unwrap().create.unwrap();
    let options = options(&[("key-secret", "s")]);
    let file = Memory::new(Vec::new());
    let context =
        diskette::drivers::CreateContext { file, data_file: None, size: SIZE, options: &options, keyring: &keyring };
    let error = block_on(create(context)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("random numbers"), "{error}");
    assert!(keyring.secret("s").is_ok() && self::keyring().secret("s").is_ok());
}
