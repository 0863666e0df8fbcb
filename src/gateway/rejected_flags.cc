#include "gateway/rejected_flags.h"

namespace sluice::gateway {
namespace {

struct Refusal {
  std::string_view instead;
  std::vector<std::string_view> flags;
  std::vector<std::string_view> taken = {};  // values
};

const std::vector<Refusal>& refusals() {
  static const std::vector<Refusal> all = {
      {"list workers that do both phases with --worker-urls.",
       {"pd-disaggregation",
        "epd-disaggregation",
        "mini-lb",
        "prefill",
        "decode",
        "encode",
        "prefill-selector",
        "decode-selector",
        "encode-selector",
        "prefill-policy",
        "decode-policy",
        "encode-policy",
        "bucket-adjust-interval-secs",
        "dp-minimum-tokens-scheduler",
        "prefill-max-inflight-requests-per-worker",
        "prefill-queue-size",
        "prefill-queue-timeout-secs",
        "pd-admission-wait-secs",
        "kv-connector-annotation",
        "kv-engine-id-annotation"}},
      {"the workers tokenize and parse; give it to them.",
       {"model-path", "model", "disable-tokenizer-autoload", "parser", "tokenizer-cache-enable-l0",
        "tokenizer-cache-l0-max-entries", "tokenizer-cache-l0-max-memory", "tokenizer-cache-enable-l1",
        "tokenizer-cache-l1-max-memory", "reasoning-parser", "tool-call-parser"}},
      {"bodies go to the workers unchanged; leave it out.",
       {"multimodal-tensor-transport", "multimodal-shm-min-bytes", "multimodal-max-inflight-bytes",
        "mm-per-request-image-limit", "mm-processing", "mm-pixel-cache-mb", "mm-pixel-rdma", "mm-allowed-media-domains",
        "mm-allow-private-media-hosts", "rdma-listen-ip", "rdma-slot-ttl-s", "log-mm-timing", "webrtc-bind-addr",
        "webrtc-stun-server"}},
      {"the gateway runs no tools and no plug-ins; leave it out.",
       {"mcp-config-path", "enable-wasm", "storage-hook-wasm-path", "schema-config", "storage-context-headers"}},
      {"the gateway keeps no history; leave it out.",
       {"history-memory-max-responses", "history-memory-max-items", "history-memory-retention-secs",
        "oracle-wallet-path", "oracle-tns-alias", "oracle-connect-descriptor", "oracle-username", "oracle-password",
        "oracle-external-auth", "oracle-pool-min", "oracle-pool-max", "oracle-pool-timeout-secs", "postgres-db-url",
        "postgres-pool-max", "postgres-op-timeout-secs", "redis-url", "redis-pool-max", "redis-retention-days",
        "redis-op-timeout-secs"}},
      {"the gateway keeps no history; leave it out.", {"history-backend"}, {"none"}},
      {"every gateway decides alone; put a load balancer with client affinity in front of several.",
       {"enable-mesh", "mesh-server-name", "mesh-host", "mesh-advertise-host", "mesh-port", "mesh-peer-urls",
        "mesh-tls-ca-cert", "mesh-tls-cert", "mesh-tls-key", "router-selector"}},
      {"bound the load with --max-concurrent-requests and --queue-size.",
       {"priority-scheduler-enabled", "priority-scheduler-default-max-class", "priority-scheduler-config",
        "priority-scheduler-tenant-metric-top-n", "tenant-rate-limit-enabled", "tenant-rate-limit-config",
        "tenant-api-key", "trust-tenant-header", "tenant-header-name"}},
      {"list the workers with --worker-urls or add them with POST /workers.",
       {"service-discovery", "selector", "service-discovery-port", "service-discovery-namespace", "model-id-from",
        "discovery-provider", "discovery-file", "discovery-check-interval-secs"}},
      {"protect the gateway with --api-key and --control-plane-api-keys.",
       {"control-plane-audit-enabled", "disable-audit-logging", "jwt-issuer", "jwt-audience", "jwt-jwks-uri",
        "jwt-role-mapping", "jwt-role-claim"}},
      {"workers are spoken to over HTTP; leave it out.", {"zmq-engine-count"}},
      {"the allocator is mimalloc: MIMALLOC_SHOW_STATS=1 prints what it holds when the program ends.",
       {"jemalloc-prof-dir"}},
      {"workers are spoken to in HTTP/1.1; leave it out.", {"upstream-http2"}},
      {"every body is read whole, up to --max-payload-size; leave it out.", {"max-buffered-request-bytes"}},
      {"it compares tokens where workers report them, else requests; leave it out.", {"power-of-two-load-metric"}},
      {"least_load prices a queue and cuts none off; leave it out.", {"least-load-max-waiting-requests"}},
      {"a worker that is full says so with 429 or 503 and is passed over meanwhile; leave it out.",
       {"worker-overload-waiting-requests", "worker-overload-token-usage", "worker-overload-protection",
        "disable-worker-overload-protection", "worker-overload-shed"}},
      {"health checks and the outcome of requests decide whether a worker is used; leave it out.",
       {"worker-stall-secs", "worker-wedge-secs", "worker-stale-secs"}},
      {"a new worker's share follows from its load and its cache; leave it out.",
       {"worker-warmup-secs", "worker-warmup-share", "worker-warmup-blocks", "worker-warmup-thin-ratio",
        "worker-warmup-divert-every"}},
      {"the prefix index is one tree over the text, bounded by --prefix-index-bytes; leave it out.",
       {"cache-index", "cache-boundaries", "cache-ttl-secs"}},
      {"the rule of choice is --policy; leave it out.",
       {"kv-index", "selection-policy", "selection-accounting-ttl-ms", "overlap-decay", "selection-temperature"}},
      {"responses are kept by the workers; leave it out.", {"max-background-responses"}},
      {"the control verbs of reinforcement learning are always there; leave it out.", {"enable-rl"}},
      // The dialects that differ in nothing that the gateway does not pass on.
      {"workers are plain HTTP workers; leave it out.", {"backend", "runtime"}, {"sglang", "vllm", "openai"}},
  };
  return all;
}

}  // namespace

std::vector<RejectedFlag> rejected_flags() {
  std::vector<RejectedFlag> flags;
  for (const Refusal& refusal : refusals()) {
    for (const std::string_view flag : refusal.flags) flags.push_back({flag, refusal.instead, refusal.taken});
  }
  return flags;
}

}  // namespace sluice::gateway
