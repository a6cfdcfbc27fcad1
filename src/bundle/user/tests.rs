//! Users by number and name, and account files an image should not have.

use std::{ffi::CString, fs, os::unix::fs::symlink, path::Path};

use super::*;
use crate::container::spec::ContainerSecurity;

type Told = Result<ResolvedUser, UserError>;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                      # comment\n\
                      1000:x:0:0:a trap:/:/bin/sh\n\
                      broken line\n\
                      www-data:x:33:33::/var/www:/bin/false\n\
                      app:x:1000:1001:App:relative/home:\n\
                      huge:x:4294967295:0::/:\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nextra:x:50000:app, other\nmore:x:60:www-data,app\n";

fn accounts() -> Accounts {
    Accounts {
        passwd: PASSWD.into(),
        group: GROUP.into(),
    }
}

fn told(security: ContainerSecurity, image: &str, accounts: &Accounts) -> Told {
    let container = ContainerSpec {
        security,
        ..ContainerSpec::default()
    };
    let image = ImageDefaults {
        user: image.to_owned(),
        ..ImageDefaults::default()
    };
    resolve(&container, &image, accounts)
}

fn image(user: &str) -> Told {
    told(ContainerSecurity::default(), user, &accounts())
}

fn ids(user: &str) -> (u32, u32, Vec<u32>) {
    let user = image(user).unwrap();
    (user.uid, user.gid, user.additional_gids)
}

#[test]
fn the_image_names_its_user_in_every_form() {
    assert_eq!(ids(""), (0, 0, vec![0]));
    assert_eq!(ids("0"), (0, 0, vec![0]));
    assert_eq!(ids("www-data"), (33, 33, vec![33, 60]));
    assert_eq!(ids("33"), (33, 33, vec![33, 60]));
    assert_eq!(ids("app"), (1000, 1001, vec![60, 1001, 50000]));
    assert_eq!(ids("app:www-data"), (1000, 33, vec![33, 60, 50000]));
    assert_eq!(ids("app:7"), (1000, 7, vec![7, 60, 50000]));
    assert_eq!(ids("1003:1004"), (1003, 1004, vec![1004]));
    assert_eq!(
        ids("1003"),
        (1003, 0, vec![0]),
        "an id without an entry is in group 0"
    );
    assert_eq!(ids("app:"), (1000, 1001, vec![60, 1001, 50000]));
    assert_eq!(ids(":7"), (0, 7, vec![7]));
}

#[test]
fn a_number_is_a_number_even_where_the_image_has_such_a_name() {
    assert_eq!(ids("1000").0, 1000);
}

#[test]
fn numbers_that_are_no_ids_and_unknown_names_are_refused() {
    for user in [
        "4294967295",
        "2147483648",
        "00",
        "01",
        "99999999999999999999",
        "-1",
        "0x0",
        "nobody",
        "huge",
        "app:nogroup",
        "app:-1",
        "app:4294967296",
        "a:b:c",
        "app\n",
        "app :7",
        "# comment",
    ] {
        let error = image(user).expect_err(user);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{user}: {error}");
    }
}

#[test]
fn the_request_goes_before_the_image() {
    let asked = ContainerSecurity {
        run_as: RunAs::Uid(33),
        run_as_group: Some(5),
        ..ContainerSecurity::default()
    };
    let user = told(asked.clone(), "app:7", &accounts()).unwrap();
    assert_eq!((user.uid, user.gid), (33, 5));
    assert_eq!(user.additional_gids, [5, 60]);
    assert_eq!(user.home.as_deref(), Some("/var/www"));
    let asked = ContainerSecurity {
        run_as: RunAs::Name("app".into()),
        ..asked
    };
    assert_eq!(told(asked.clone(), "", &accounts()).unwrap().uid, 1000);
}

#[test]
fn strict_leaves_out_the_groups_of_the_image() {
    let asked = |policy| ContainerSecurity {
        supplemental_groups: vec![1234],
        supplemental_groups_policy: policy,
        ..ContainerSecurity::default()
    };
    let merged = told(asked(SupplementalGroupsPolicy::Merge), "app", &accounts()).unwrap();
    assert_eq!(merged.additional_gids, [60, 1001, 1234, 50000]);
    let strict = told(asked(SupplementalGroupsPolicy::Strict), "app", &accounts()).unwrap();
    assert_eq!(strict.additional_gids, [1001, 1234]);
}

#[test]
fn only_an_absolute_home_is_one() {
    assert_eq!(image("app").unwrap().home, None);
    assert_eq!(image("0").unwrap().home.as_deref(), Some("/root"));
}

fn root_with(make: impl FnOnce(&Path)) -> Result<Accounts, UserError> {
    let root = tempfile::tempdir().unwrap();
    make(root.path());
    let root = File::open(root.path()).unwrap();
    Accounts::read(root.as_fd())
}

fn with_etc(make: impl FnOnce(&Path)) -> Result<Accounts, UserError> {
    root_with(|root| {
        fs::create_dir(root.join("etc")).unwrap();
        make(&root.join("etc"));
    })
}

#[test]
fn missing_files_are_empty() {
    assert_eq!(root_with(|_| {}).unwrap(), Accounts::default());
    assert_eq!(
        root_with(|root| fs::write(root.join("etc"), "").unwrap()).unwrap(),
        Accounts::default()
    );
}

#[test]
fn files_are_read_through_links_that_stay_inside() {
    let read = with_etc(|etc| {
        fs::write(etc.join("real"), PASSWD).unwrap();
        symlink("/etc/real", etc.join("passwd")).unwrap();
        symlink("../../../../../../etc/real", etc.join("group")).unwrap();
    });
    let read = read.unwrap();
    assert_eq!(read.passwd, PASSWD.as_bytes());
    assert_eq!(
        read.group,
        PASSWD.as_bytes(),
        "the root's own file, not the host's"
    );
}

#[test]
fn a_link_to_a_place_only_the_host_has_is_a_missing_file() {
    let host = tempfile::NamedTempFile::new().unwrap();
    fs::write(host.path(), "root:x:0:0::/:\n").unwrap();
    let read = with_etc(|etc| symlink(host.path(), etc.join("passwd")).unwrap());
    assert_eq!(read.unwrap(), Accounts::default());
}

#[test]
fn what_is_no_regular_file_is_refused_without_opening_it() {
    let fifo = with_etc(|etc| {
        let path = CString::new(etc.join("passwd").to_str().unwrap()).unwrap();
        nix::unistd::mkfifo(path.as_c_str(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    });
    assert!(
        matches!(fifo, Err(UserError::NotRegular { .. })),
        "{fifo:?}"
    );
    let directory = with_etc(|etc| fs::create_dir(etc.join("group")).unwrap());
    assert!(matches!(
        directory,
        Err(UserError::NotRegular { path: "/etc/group" })
    ));
}

#[test]
fn a_huge_file_is_refused() {
    let huge = with_etc(|etc| {
        let file = File::create(etc.join("passwd")).unwrap();
        file.set_len(2 << 30).unwrap();
    });
    assert!(matches!(huge, Err(UserError::TooLarge { .. })), "{huge:?}");
}

#[test]
fn a_loop_of_links_is_an_error() {
    let looped = with_etc(|etc| symlink("passwd", etc.join("passwd")).unwrap());
    let Err(UserError::Open { source, .. }) = looped else {
        panic!("{looped:?}")
    };
    assert_eq!(source.raw_os_error(), libc::ELOOP);
}

proptest::proptest! {
    #[test]
    fn no_account_files_make_it_panic(
        passwd in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
        group in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
        user in "[a-c0-2:]{0,6}",
    ) {
        let accounts = Accounts { passwd, group };
        if let Ok(user) = told(ContainerSecurity::default(), &user, &accounts) {
            proptest::prop_assert!(user.uid <= MAX_ID && user.gid <= MAX_ID);
            proptest::prop_assert!(user.additional_gids.contains(&user.gid));
        }
    }
}
