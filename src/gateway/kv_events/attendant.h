// From a worker that is ready to one whose cache is known: where it publishes its KV events, and whether they speak of
// the same tokens as the prompts here.
#pragma once

#include "gateway/context.h"
#include "gateway/fleet.h"
#include "gateway/kv_events/kv_caches.h"
#include "net/client.h"
#include "net/loop.h"

namespace sluice::gateway {

// Where a worker publishes, or why it is not heard.
struct KvSource {
  std::optional<KvEndpoint> endpoint;
  std::string why;
  bool is_final = false;  // asking again is of no use
};

// What the worker's server information says of it; `status` is that of the answer.
KvSource kv_source_in(const Worker& worker, int status, const std::string& body, std::optional<int64_t> block_size);
// The endpoint of a rank, as one who listens from elsewhere has to call it; kInvalidArgument where nobody can.
Result<std::string> kv_endpoint_of(const std::string& configured, const std::string& host, int64_t rank);

// On the loop, for as long as the worker is there and of this generation; `context.kv` is there. Everything that it
// asks of the worker is bounded: the parity probe of three requests ends within ten seconds.
net::Task<> attend_kv_events(Context& context, net::EventLoop& loop, net::Client& client, WorkerPtr worker);

}  // namespace sluice::gateway
