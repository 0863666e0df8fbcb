// The place of a request in a trace: which one it continues, and what the worker gets to know.
#pragma once

#include "base/rng.h"
#include "net/http.h"
#include "obs/journal.h"

namespace sluice::gateway {

// Continues the trace that the client names, where that is valid; begins one otherwise. A request that its client says
// nobody records has none here, and its headers go on as they came.
void begin_trace(const net::Headers& headers, Rng& rng, obs::RequestRecord& record);

// The worker's part of the trace is below ours.
void pass_on(const obs::RequestRecord& record, net::Headers& headers);

}  // namespace sluice::gateway
