// Whether a worker makes the same tokens of a prompt as the gateway, cuts them into the blocks that its events name,
// and finds them in its cache the second time. Everything else that is told from its events rests on that.
#pragma once

#include "gateway/context.h"
#include "gateway/kv_events/kv_caches.h"
#include "net/client.h"
#include "net/loop.h"

namespace sluice::gateway {

// Three short requests of one token each; ends within ten seconds. The worker's stream is heard already.
net::Task<KvVerdict> probe_parity(Context& context, net::EventLoop& loop, net::Client& client, WorkerPtr worker);

}  // namespace sluice::gateway
