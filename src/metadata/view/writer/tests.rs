//! The writer against a store that fails on demand, and once against SQLite.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use super::*;
use crate::metadata::tests::{at, bootstrap, create, delete, run};
use crate::metadata::view::{HistoryRow, SqliteStore, TopicRow, rows_of};
use crate::metadata::{Command, Topic, apply};
use crate::types::TopicId;

#[derive(Debug, Default)]
struct FakeRows {
    state: Option<ViewState>,
    topics: BTreeMap<TopicId, Arc<Topic>>,
}

/// A store in memory that holds topics only, fails as often as it is told and counts.
#[derive(Debug)]
struct FakeStore {
    rows: Mutex<FakeRows>,
    failures_left: AtomicU32,
    writes: AtomicU32,
    rebuilds: AtomicU32,
    /// Each write or rebuild takes a permit.
    gate: Semaphore,
}

impl FakeStore {
    fn new(failures: u32) -> Arc<Self> {
        Arc::new(Self {
            rows: Mutex::default(),
            failures_left: AtomicU32::new(failures),
            writes: AtomicU32::new(0),
            rebuilds: AtomicU32::new(0),
            gate: Semaphore::new(1_000_000),
        })
    }

    fn fill(&self, changes: &[RowChange], applied: LogPosition) {
        let mut rows = self.rows.lock();
        for change in changes {
            match change {
                RowChange::TopicAdded(topic) | RowChange::TopicChanged(topic) => {
                    rows.topics.insert(topic.id, Arc::clone(topic));
                }
                RowChange::TopicRemoved(id) => {
                    rows.topics.remove(id);
                }
                RowChange::Cluster(id) => {
                    let cluster_id = Some(id.to_string());
                    rows.state = Some(ViewState { cluster_id, applied });
                }
                _ => {}
            }
        }
        rows.state.get_or_insert(ViewState { cluster_id: None, applied }).applied = applied;
    }

    async fn pass(&self, counter: &AtomicU32) -> Result<(), StoreError> {
        self.gate.acquire().await.unwrap().forget();
        counter.fetch_add(1, Ordering::SeqCst);
        let fail = |left: u32| left.checked_sub(1);
        match self.failures_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fail) {
            Ok(_) => Err(StoreError::OutOfRange(0)),
            Err(_) => Ok(()),
        }
    }

    fn check(&self, image: &Image) {
        let rows = self.rows.lock();
        assert_eq!(rows.state.as_ref().unwrap().applied, image.changed());
        assert!(rows.topics.values().eq(image.topics()), "{:?}", rows.topics);
    }

    fn counts(&self) -> (u32, u32) {
        (self.writes.load(Ordering::SeqCst), self.rebuilds.load(Ordering::SeqCst))
    }
}

impl MetadataStore for FakeStore {
    async fn state(&self) -> Result<Option<ViewState>, StoreError> {
        Ok(self.rows.lock().state.clone())
    }

    async fn write(&self, changes: &[RowChange], applied: LogPosition) -> Result<(), StoreError> {
        self.pass(&self.writes).await?;
        self.fill(changes, applied);
        Ok(())
    }

    async fn rebuild(&self, image: &Image) -> Result<(), StoreError> {
        self.pass(&self.rebuilds).await?;
        *self.rows.lock() = Default::default();
        self.fill(&rows_of(image), image.changed());
        Ok(())
    }

    async fn search_topics(&self, _text: &str, _limit: u32) -> Result<Vec<TopicRow>, StoreError> {
        Ok(Vec::new())
    }

    async fn history(&self, _limit: u32) -> Result<Vec<HistoryRow>, StoreError> {
        Ok(Vec::new())
    }

    async fn close(&self) {}
}

/// The metadata shard's driver in small: applies, publishes, feeds.
struct Driver {
    image: Arc<ArcSwap<Image>>,
    feed: ViewFeed,
    index: u64,
}

impl Driver {
    fn start<S: MetadataStore>(store: &Arc<S>, commands: &[Command]) -> (Self, ViewWriter<S>) {
        let (image, _) = run(commands);
        let image = Arc::new(ArcSwap::from_pointee(image));
        let published = Arc::clone(&image);
        let (feed, writer) = view_writer(Arc::clone(store), move || published.load_full());
        (Self { image, feed, index: u64::try_from(commands.len()).unwrap() }, writer)
    }

    fn apply(&mut self, command: &Command) {
        self.index += 1;
        let mut image = Image::clone(&self.image.load());
        let (_, rows) = apply(&mut image, at(self.index), command);
        self.image.store(Arc::new(image));
        self.feed.submit(at(self.index), rows);
    }

    /// Creates and deletes, over and over, so that each of `count` commands changes something.
    fn churn(&mut self, count: u64) {
        for _ in 0..count {
            let id = topic(self.index / 3);
            let name = format!("topic-{id}");
            match self.index % 3 {
                0 => self.apply(&create(id, &name, 2, 1)),
                1 => self.apply(&delete(id)),
                _ => self.apply(&Command::FinishDeleteTopic { topic_id: topic_id(id) }),
            }
        }
    }

    /// Ends the feed; the writer ends when it has written everything.
    fn end(self) -> (ViewMonitor, Arc<Image>) {
        (self.feed.monitor(), self.image.load_full())
    }
}

fn topic(number: u64) -> u8 {
    u8::try_from(10 + number % 200).unwrap()
}

fn topic_id(id: u8) -> TopicId {
    crate::metadata::tests::topic_id(id)
}

fn up_to_date(image: &Image) -> ViewStatus {
    ViewStatus { applied_index: image.changed().index, behind: 0, last_error: None }
}

fn founded() -> [Command; 3] {
    [bootstrap(2), create(1, "a", 2, 1), create(2, "b", 2, 1)]
}

/// Waits on the (paused) clock until a condition holds.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3_600), wait).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_piles_up_is_written_in_one_transaction() {
    let store = FakeStore::new(0);
    let (mut driver, writer) = Driver::start(&store, &founded());
    driver.churn(100);
    let (monitor, image) = driver.end();
    assert_eq!(monitor.status().behind, 103);
    writer.run(CancellationToken::new()).await;
    store.check(&image);
    assert_eq!(monitor.status(), up_to_date(&image));
    // The first start rebuilds from the current image, which has everything that is queued.
    assert_eq!(store.counts(), (0, 1));

    let (mut driver, writer) = Driver::start(&store, &[]);
    driver.image.store(Arc::clone(&image));
    driver.index = image.changed().index.get();
    driver.feed.last = image.changed();
    let stop = CancellationToken::new();
    let monitor = driver.feed.monitor();
    let produce = async {
        until(|| monitor.status().applied_index == image.changed().index).await;
        driver.churn(300);
        driver.end()
    };
    let ((), (monitor, image)) = tokio::join!(writer.run(stop), produce);
    store.check(&image);
    assert_eq!(monitor.status(), up_to_date(&image));
    assert_eq!(store.counts(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_start_rebuilds_only_what_is_not_a_copy() {
    let store = FakeStore::new(0);
    for (commands, rebuilds) in [(2, 1), (2, 1), (3, 2), (2, 3)] {
        let (driver, writer) = Driver::start(&store, &founded()[..commands]);
        let (monitor, image) = driver.end();
        writer.run(CancellationToken::new()).await;
        store.check(&image);
        assert_eq!(monitor.status(), up_to_date(&image));
        assert_eq!(store.counts(), (0, rebuilds));
    }
    // Another cluster at the same position.
    let mut commands = founded();
    if let Command::Bootstrap(bootstrap) = &mut commands[0] {
        bootstrap.cluster_id = crate::types::ClusterId::new(uuid::Uuid::from_u128(8));
    }
    let (driver, writer) = Driver::start(&store, &commands[..2]);
    drop(driver);
    writer.run(CancellationToken::new()).await;
    assert_eq!(store.counts(), (0, 4));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_drops_and_the_view_is_rebuilt() {
    let store = FakeStore::new(0);
    let (mut driver, writer) = Driver::start(&store, &founded());
    let (monitor, stop) = (driver.feed.monitor(), CancellationToken::new());
    let produce = async {
        until(|| monitor.status().behind == 0).await;
        store.gate.forget_permits(1_000_000);
        driver.churn(1);
        // The queue's length and those that the writer may have taken already.
        driver.churn(u64::try_from(QUEUE_LEN_MAX + 2).unwrap());
        assert!(driver.feed.shared.progress.lock().dropped > LogPosition::default());
        assert!(monitor.status().behind > 4_000);
        store.gate.add_permits(1_000_000);
        until(|| monitor.status().behind == 0).await;
        store.check(&driver.image.load());
        driver.churn(5);
        driver.end()
    };
    let ((), (monitor, image)) = tokio::join!(writer.run(stop), produce);
    store.check(&image);
    assert_eq!(monitor.status(), up_to_date(&image));
    assert_eq!(store.counts().1, 2);
}

#[tokio::test(start_paused = true)]
async fn a_hole_between_items_is_seen_where_it_is() {
    let store = FakeStore::new(0);
    let (mut driver, mut writer) = Driver::start(&store, &founded());
    let stop = CancellationToken::new();
    writer.compare(&stop).await;
    driver.churn(3);
    drop(writer.queue.try_recv().unwrap());
    let (monitor, image) = driver.end();
    let batch = writer.next_batch(&stop).await.unwrap();
    assert_eq!(batch.len(), 2);
    writer.write(batch).await;
    assert!(writer.has_hole());
    assert_eq!(store.counts(), (0, 1));
    writer.rebuild(&stop).await;
    store.check(&image);
    assert_eq!(monitor.status(), up_to_date(&image));
}

#[tokio::test(start_paused = true)]
async fn what_a_rebuild_covered_does_not_stand_in_the_way_of_what_is_newer() {
    let store = FakeStore::new(0);
    let (mut driver, mut writer) = Driver::start(&store, &founded());
    let stop = CancellationToken::new();
    driver.churn(2);
    writer.compare(&stop).await;
    driver.churn(1);
    let (_, image) = driver.end();
    let batch = writer.next_batch(&stop).await.unwrap();
    assert_eq!(batch.len(), 3);
    writer.write(batch).await;
    assert!(!writer.has_hole());
    store.check(&image);
    assert_eq!(store.counts(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn failures_are_reported_and_healed_by_a_rebuild_after_a_pause() {
    let store = FakeStore::new(0);
    let (mut driver, writer) = Driver::start(&store, &founded());
    let (monitor, stop) = (driver.feed.monitor(), CancellationToken::new());
    let produce = async {
        until(|| monitor.status().behind == 0).await;
        store.failures_left.store(12, Ordering::SeqCst);
        driver.churn(5);
        until(|| monitor.status().last_error.is_some()).await;
        driver.churn(5);
        assert!(monitor.status().behind > 0);
        let before = tokio::time::Instant::now();
        until(|| monitor.status().behind == 0).await;
        // Eleven failed rebuilds, paced: 0.1 s doubling, at most 30 s.
        assert!(before.elapsed() > Duration::from_secs(100));
        driver.end()
    };
    let ((), (monitor, image)) = tokio::join!(writer.run(stop), produce);
    store.check(&image);
    assert_eq!(monitor.status(), up_to_date(&image));
    // The failing write, 11 failing rebuilds, the good one; before them the one at the start.
    assert_eq!(store.counts().1, 1 + 11 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_image_is_written_whole() {
    let store = FakeStore::new(0);
    let (mut driver, writer) = Driver::start(&store, &founded()[..2]);
    let (monitor, stop) = (driver.feed.monitor(), CancellationToken::new());
    let produce = async {
        until(|| monitor.status().behind == 0).await;
        // The feed is told a moment before the image is published: the rows must follow anyway.
        let (other, _) = run(&founded());
        driver.feed.replaced(&other);
        until(|| store.counts().1 > 1).await;
        driver.image.store(Arc::new(other));
        driver.index = 3;
        driver.churn(3);
        until(|| monitor.status().behind == 0).await;
        driver.end()
    };
    let ((), (_, image)) = tokio::join!(writer.run(stop), produce);
    store.check(&image);
}

#[tokio::test(start_paused = true)]
async fn stop_ends_the_writer_while_the_store_fails_and_while_it_is_idle() {
    for failures in [0, u32::MAX] {
        let store = FakeStore::new(failures);
        let (driver, writer) = Driver::start(&store, &founded());
        let stop = CancellationToken::new();
        let end = async {
            until(|| store.counts().1 > 0).await;
            stop.cancel();
        };
        tokio::join!(writer.run(stop.clone()), end);
        drop(driver);
    }
}

#[tokio::test]
async fn a_sqlite_view_follows_and_is_rebuilt_after_its_file_was_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata.db");
    let mut commands = founded().to_vec();
    for _ in 0..2 {
        let store = Arc::new(SqliteStore::open(&path).await.unwrap());
        let (mut driver, writer) = Driver::start(&store, &commands);
        driver.apply(&create(9, "late", 3, 1));
        commands.push(create(9, "late", 3, 1));
        let (_, image) = driver.end();
        writer.run(CancellationToken::new()).await;
        let store = SqliteStore::open(&path).await.unwrap();
        assert_eq!(store.state().await.unwrap().unwrap().applied, image.changed());
        assert_eq!(store.search_topics("", 10).await.unwrap().len(), 3);
        store.close().await;
        std::fs::remove_file(&path).unwrap();
    }
}
