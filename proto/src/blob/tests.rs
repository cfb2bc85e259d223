use super::*;

const LIMIT: u64 = 64 * 1024 * 1024;

async fn blobs() -> (tempfile::TempDir, Blobs) {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Blobs::directory(&directory.path().join("blobs"))
        .await
        .unwrap();
    (directory, blobs)
}

fn id(n: u64) -> MessageId {
    MessageId::derived("test", &n.to_be_bytes())
}

#[tokio::test]
async fn a_body_is_kept_replaced_and_deleted() {
    let (_directory, blobs) = blobs().await;
    assert!(
        matches!(blobs.get(id(1), LIMIT).await, Err(Error::Missing(missing)) if missing == id(1))
    );
    for _ in 0..2 {
        blobs.put(id(1), Bytes::from_static(b"body")).await.unwrap();
    }
    assert_eq!(blobs.get(id(1), 4).await.unwrap(), "body");
    for _ in 0..2 {
        blobs.delete(id(1)).await.unwrap();
    }
    assert!(matches!(
        blobs.get(id(1), LIMIT).await,
        Err(Error::Missing(_))
    ));
}

#[tokio::test]
async fn a_body_over_the_readers_limit_is_not_read() {
    let (_directory, blobs) = blobs().await;
    blobs.put(id(1), Bytes::from_static(b"body")).await.unwrap();
    let refused = blobs.get(id(1), 3).await;
    assert!(matches!(refused, Err(Error::TooLarge { limit: 3, .. })));
}

#[tokio::test]
async fn the_identity_is_drawn_once_whoever_comes_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shared");
    let both = tokio::join!(
        Blobs::directory(&path),
        Blobs::directory(&path),
        Blobs::directory(&path)
    );
    let first = both.0.unwrap();
    assert_eq!(first.identity(), both.1.unwrap().identity());
    assert_eq!(first.identity(), both.2.unwrap().identity());
    assert_eq!(
        first.identity(),
        Blobs::directory(&path).await.unwrap().identity()
    );
    let other = Blobs::directory(&directory.path().join("other"))
        .await
        .unwrap();
    assert_ne!(first.identity(), other.identity());
}

#[tokio::test]
async fn a_damaged_identity_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(IDENTITY), b"\xffno id").unwrap();
    let refused = Blobs::directory(directory.path()).await;
    assert!(matches!(refused, Err(Error::Damaged)));
}

#[tokio::test]
async fn a_store_that_is_away_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobs");
    let blobs = Blobs::directory(&path).await.unwrap();
    // A file where the directory was: nothing can be written there, whoever runs this test.
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::write(&path, b"").unwrap();
    let refused = blobs.put(id(1), Bytes::from_static(b"body")).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))));
    let refused = Blobs::directory(&path).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))));
}

#[tokio::test]
async fn an_upload_in_parts_appears_whole_when_it_is_finished() {
    let (_directory, blobs) = blobs().await;
    let part = Bytes::from((0..=255).cycle().take(3_000_000).collect::<Vec<u8>>());
    let mut upload = blobs.begin(id(1), LIMIT).await.unwrap();
    for n in 1..=4 {
        let size = upload.part(part.clone()).await.unwrap();
        assert_eq!(size, n * 3_000_000);
        assert!(upload.collected.len() < PART_BYTES);
    }
    assert!(matches!(
        blobs.get(id(1), LIMIT).await,
        Err(Error::Missing(_))
    ));
    assert_eq!(upload.finish().await.unwrap(), 12_000_000);
    assert_eq!(blobs.get(id(1), LIMIT).await.unwrap(), part.repeat(4));
}

#[tokio::test]
async fn an_upload_over_its_limit_is_refused_and_goes_on_without_what_was_too_much() {
    let (_directory, blobs) = blobs().await;
    let mut upload = blobs.begin(id(1), 6).await.unwrap();
    upload.part(Bytes::from_static(b"four")).await.unwrap();
    let refused = upload.part(Bytes::from_static(b"three")).await;
    assert!(matches!(refused, Err(Error::TooLarge { limit: 6, .. })));
    assert_eq!(upload.size(), 4);
    upload.part(Bytes::from_static(b"as")).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), 6);
    assert_eq!(blobs.get(id(1), LIMIT).await.unwrap(), "fouras");
}

#[tokio::test]
async fn an_empty_upload_is_an_empty_body() {
    let (_directory, blobs) = blobs().await;
    let upload = blobs.begin(id(1), 0).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), 0);
    assert_eq!(blobs.get(id(1), 0).await.unwrap(), "");
}

#[tokio::test]
async fn an_abandoned_upload_leaves_nothing() {
    let (directory, blobs) = blobs().await;
    let mut upload = blobs.begin(id(1), LIMIT).await.unwrap();
    upload.part(Bytes::from(vec![7; PART_BYTES])).await.unwrap();
    upload.abandon().await.unwrap();
    let folder = directory
        .path()
        .join("blobs")
        .join(&name(id(1)).as_ref()[..2]);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
}

#[tokio::test]
async fn old_bodies_are_found_and_foreign_files_are_not() {
    let (directory, blobs) = blobs().await;
    blobs.put(id(1), Bytes::from_static(b"old")).await.unwrap();
    blobs.put(id(2), Bytes::from_static(b"new")).await.unwrap();
    let root = directory.path().join("blobs");
    let old = std::time::SystemTime::now() - Duration::from_secs(3_600);
    let file = std::fs::File::options()
        .write(true)
        .open(root.join(name(id(1)).as_ref()))
        .unwrap();
    file.set_modified(old).unwrap();
    std::fs::write(root.join("stranger"), b"").unwrap();
    let age = Duration::from_secs(600);
    let found: Vec<_> = blobs.older_than(age).try_collect().await.unwrap();
    assert_eq!(found, [id(1)]);
}

#[tokio::test]
async fn what_an_upload_has_left_is_removed_once_it_is_old() {
    let (directory, blobs) = blobs().await;
    blobs.put(id(1), Bytes::from_static(b"body")).await.unwrap();
    let mut upload = blobs.begin(id(2), LIMIT).await.unwrap();
    upload.part(Bytes::from(vec![7; PART_BYTES])).await.unwrap();
    let folder = directory
        .path()
        .join("blobs")
        .join(&name(id(2)).as_ref()[..2]);
    let staged = || {
        let all = std::fs::read_dir(&folder)
            .unwrap()
            .map(|it| it.unwrap().path());
        all.filter(|path| path.to_string_lossy().contains('#'))
            .collect::<Vec<_>>()
    };
    assert_eq!(staged().len(), 1);
    let age = Duration::from_secs(600);
    assert_eq!(blobs.remove_unfinished(age).await.unwrap(), 0);
    let old = std::time::SystemTime::now() - Duration::from_secs(3_600);
    let file = std::fs::File::options()
        .write(true)
        .open(&staged()[0])
        .unwrap();
    file.set_modified(old).unwrap();
    assert_eq!(blobs.remove_unfinished(age).await.unwrap(), 1);
    assert!(staged().is_empty());
    assert_eq!(blobs.get(id(1), LIMIT).await.unwrap(), "body");
}

#[test]
fn names_are_spread_by_what_differs() {
    let mut door = crate::ids::DoorSequence::default();
    let now = UnixMillis::now();
    let folders: std::collections::HashSet<_> = (0..256)
        .map(|_| name(door.issue(now)).as_ref()[..2].to_owned())
        .collect();
    assert_eq!(folders.len(), 256);
}
