//! kill -9 in a loop: a child of this test binary writes, this process kills it at random moments and
//! checks that everything the child saw acknowledged is there.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use rand::Rng;

use super::*;

const DIR: &str = "CRISP_TEST_STORE_CHILD";

/// Not a test of its own: what the killed child runs. Without its variable it has nothing to do.
#[test]
fn child_writes_until_killed() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let (store, report) = open(Path::new(&dir));
    assert!(!report.rebuilt, "{report:?}");
    let table = store.table::<Note>().unwrap();
    store.rebuild_finished().unwrap();
    let mut random = rand::rng();
    println!("ready");
    loop {
        let (key, number) = (
            format!("{:03}", random.random_range(0..200)),
            random.random(),
        );
        let durable = random.random_ratio(1, 20);
        if random.random_ratio(1, 4) {
            println!("try {key} -");
            table.remove(&key).wait().unwrap();
        } else {
            println!("try {key} {number}");
            let put = if durable {
                Table::put_durable
            } else {
                Table::put
            };
            put(&table, &key, note(number)).wait().unwrap();
        }
        println!("ack");
    }
}

use crate::store::Table;

/// What the child said last about each key: acknowledged value, and one that was under way.
#[derive(Default)]
struct Truth {
    acknowledged: BTreeMap<String, u64>,
    under_way: Option<(String, Option<u64>)>,
}

impl Truth {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["try", key, value] => self.under_way = Some((key.to_owned(), value.parse().ok())),
            ["ack"] => self.settle(),
            _ => {}
        }
    }

    fn settle(&mut self) {
        match self.under_way.take() {
            Some((key, Some(value))) => drop(self.acknowledged.insert(key, value)),
            Some((key, None)) => drop(self.acknowledged.remove(&key)),
            None => {}
        }
    }

    /// Compares with what the store holds; the write under way may have happened or not.
    fn check(&mut self, table: &Table<Note>) {
        let found: BTreeMap<String, u64> = table
            .scan("")
            .into_iter()
            .map(|(key, found)| {
                assert_eq!(*found, note(found.number), "{key} is altered");
                (key, found.number)
            })
            .collect();
        if found != self.acknowledged {
            self.settle();
        }
        self.under_way = None;
        assert_eq!(found, self.acknowledged);
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_daemon_is_killed() {
    let place = place();
    let mut truth = Truth::default();
    let mut writes = 0;
    for round in 0..25 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::tests::crash::child_writes_until_killed",
                "--nocapture",
            ])
            .env(DIR, &place.store)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let kill_after: u32 = rand::rng().random_range(1..600);
        let mut heard = 0;
        for line in lines {
            truth.hear(&line.unwrap());
            heard += 1;
            if heard == kill_after {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(
            heard >= kill_after,
            "round {round}: the child ended by itself"
        );
        writes += heard;
        let (store, report) = open(&place.store);
        assert!(!report.rebuilt, "round {round}: {report:?}");
        truth.check(&store.table::<Note>().unwrap());
    }
    assert!(writes > 25, "the children wrote");
}
