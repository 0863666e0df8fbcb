// What is known of a request, for those who look: where it is while it runs, and where its record goes at its end.
#pragma once

#include <string_view>

#include "gateway/context.h"
#include "net/server.h"
#include "obs/journal.h"

namespace sluice::gateway {

// "choosing a worker"
std::string_view doing_now(const obs::RequestRecord& record);

// The request of an exchange has ended: to the access log and the traces, where they are on, and to the journal.
void report(Context& context, const net::ServerExchange& client, obs::RequestRecord record);

}  // namespace sluice::gateway
