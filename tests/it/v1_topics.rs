//! Topics on the native face.

use reqwest::Method;
use serde_json::json;

use crate::support::{Reply, Server};

#[tokio::test]
async fn a_put_creates_confirms_or_differs() {
    let server = Server::start().await;
    let put = async |body: &'static str| {
        Reply::of(server.request(Method::PUT, "/v1/topics/flights").body(body)).await
    };
    let body = r#"{"partitions":3,"configs":{"retention.ms":-1}}"#;
    let created = put(body).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let topic = created.json();
    assert_eq!(topic["topic"], "flights");
    assert_eq!(topic["partitions"], 3);
    assert_eq!(topic["replication_factor"], 1);
    assert_eq!(topic["configs"], json!({"retention.ms": "-1"}));
    assert_eq!(topic["details"].as_array().unwrap().len(), 3);
    let first = &topic["details"][0];
    assert_eq!((&first["partition"], &first["leader"]), (&json!(0), &json!(1)));
    assert_eq!((&first["log_start_offset"], &first["log_end_offset"]), (&json!(0), &json!(0)));

    for same in [body, "", "{}", r#"{"partitions":3}"#] {
        let confirmed = put(same).await;
        assert_eq!(confirmed.status, 200, "{same}: {}", confirmed.text());
        assert_eq!(confirmed.json()["topic_id"], topic["topic_id"]);
    }
    for other in [r#"{"partitions":4}"#, r#"{"configs":{"retention.ms":"5"}}"#] {
        let refused = put(other).await;
        assert_eq!(
            (refused.status.as_u16(), refused.json()["error_code"].as_u64()),
            (409, Some(40904))
        );
    }
    let shown = Reply::of(server.request(Method::GET, "/v1/topics/flights")).await;
    assert_eq!(shown.json(), topic);
    let shown = Reply::of(server.request(Method::GET, "/v1/topics/flights/")).await;
    assert_eq!(shown.json(), topic, "a trailing slash is tolerated");
    server.stop().await;
}

#[tokio::test]
async fn what_is_given_twice_is_refused() {
    let server = Server::start().await;
    for (body, pointer) in [
        (r#"{"partitions":1,"partitions":2}"#, "/partitions"),
        (r#"{"configs":{"retention.ms":1,"retention.ms":2}}"#, "/configs/retention.ms"),
        (r#"{"configs":{},"replication_factor":1,"configs":{}}"#, "/configs"),
    ] {
        let reply = Reply::of(server.request(Method::PUT, "/v1/topics/t").body(body)).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["code"]), (422, &json!("invalid_body")));
        assert_eq!(reply.json()["errors"][0]["pointer"], pointer, "{body}");
    }
    for query in ["limit=1&limit=2", "prefix=a&prefix=a", "cursor=&cursor=", "l%69mit=1&limit=1"] {
        let reply = Reply::of(server.request(Method::GET, &format!("/v1/topics?{query}"))).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error_code"]), (400, &json!(400)));
        assert!(reply.json()["detail"].as_str().unwrap().contains("twice"), "{query}");
    }
    let list = Reply::of(server.request(Method::GET, "/v1/topics")).await.json();
    assert_eq!(list["topics"], json!([]));
    server.stop().await;
}

#[tokio::test]
async fn what_no_topic_can_be_is_refused() {
    let server = Server::start().await;
    let put = async |name: &str, body: &'static str| {
        Reply::of(server.request(Method::PUT, &format!("/v1/topics/{name}")).body(body)).await
    };
    assert_eq!(put("a.b", "").await.status, 201);
    for (name, body, status, code) in [
        ("t", "{", 400, "invalid_request"),
        ("t", "[]", 422, "invalid_body"),
        ("t", r#"{"partition":1}"#, 422, "invalid_body"),
        ("t", r#"{"partitions":0}"#, 400, "invalid_config"),
        ("t", r#"{"partitions":10001}"#, 400, "invalid_config"),
        ("t", r#"{"replication_factor":3}"#, 503, "unavailable"),
        ("t", r#"{"configs":{"no.such":1}}"#, 400, "invalid_config"),
        ("t", r#"{"configs":{"retention.ms":"soon"}}"#, 400, "invalid_config"),
        ("a_b", "", 422, "invalid_name"),
        ("__internal", "", 422, "invalid_name"),
        ("%20", "", 422, "invalid_name"),
        ("a%2Fb", "", 422, "invalid_name"),
        ("a%00b", "", 422, "invalid_name"),
        ("%ff", "", 422, "invalid_name"),
    ] {
        let reply = put(name, body).await;
        assert_eq!(reply.status, status, "{name} {body}: {}", reply.text());
        assert_eq!(reply.json()["code"], code, "{name} {body}");
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    }
    for method in [Method::GET, Method::DELETE] {
        for name in ["t", "a%2Fb", "%ff", "a%00b", &"x".repeat(250)] {
            let reply =
                Reply::of(server.request(method.clone(), &format!("/v1/topics/{name}"))).await;
            assert_eq!(reply.status, 404, "{method} {name}: {}", reply.text());
            assert_eq!(reply.json()["error_code"], 40401);
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn lists_are_paged_by_name_and_deleted_topics_are_gone() {
    let server = Server::start().await;
    for name in ["c", "a1", "a2", "a3", "b"] {
        let path = format!("/v1/topics/{name}");
        assert_eq!(Reply::of(server.request(Method::PUT, &path)).await.status, 201);
    }
    let list = async |query: &str| {
        let reply = Reply::of(server.request(Method::GET, &format!("/v1/topics{query}"))).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let body = reply.json();
        let names: Vec<_> = body["topics"]
            .as_array()
            .unwrap()
            .iter()
            .map(|topic| topic["topic"].as_str().unwrap().to_owned())
            .collect();
        (names, body["next"].as_str().map(str::to_owned))
    };
    let (names, next) = list("?limit=2&prefix=a").await;
    assert_eq!(names, ["a1", "a2"]);
    let (names, next) = list(&format!("?limit=2&prefix=a&cursor={}", next.unwrap())).await;
    assert_eq!((names, next), (vec!["a3".to_owned()], None));

    assert_eq!(Reply::of(server.request(Method::DELETE, "/v1/topics/b")).await.status, 204);
    assert_eq!(Reply::of(server.request(Method::DELETE, "/v1/topics/b")).await.status, 404);
    assert_eq!(list("").await, (["a1", "a2", "a3", "c"].map(str::to_owned).to_vec(), None));

    let refused = Reply::of(server.request(Method::GET, "/v1/topics?limit=0")).await;
    assert_eq!(refused.status, 400);
    assert!(refused.json()["detail"].as_str().unwrap().contains("'limit'"));
    server.stop().await;
}

#[tokio::test]
async fn other_paths_and_methods_are_answered_in_shape() {
    let server = Server::start().await;
    let request = server.request(Method::GET, "/v1/nothing").header("x-request-id", "me-1");
    let missing = Reply::of(request).await;
    assert_eq!((missing.status.as_u16(), &missing.json()["code"]), (404, &json!("not_found")));
    assert_eq!(missing.json()["request_id"], "me-1");
    assert_eq!(missing.header("x-request-id"), Some("me-1"));

    let patched = Reply::of(server.request(Method::PATCH, "/v1/topics/t")).await;
    assert_eq!(patched.status, 405);
    assert_eq!(patched.json()["code"], "method_not_allowed");
    let allowed = patched.header("allow").unwrap();
    assert!(["GET", "PUT", "DELETE"].iter().all(|verb| allowed.contains(verb)), "{allowed}");

    let options = Reply::of(server.request(Method::OPTIONS, "/v1/topics/t/records")).await;
    assert_eq!(options.status, 204);
    assert!(options.header("allow").unwrap().contains("POST"));
    let head = Reply::of(server.request(Method::HEAD, "/v1/topics")).await;
    assert_eq!((head.status.as_u16(), head.text()), (200, ""));
    let html = server.request(Method::GET, "/v1/topics").header("accept", "text/html");
    assert_eq!(Reply::of(html).await.status, 406);
    server.stop().await;
}
