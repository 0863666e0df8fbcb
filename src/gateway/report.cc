#include "gateway/report.h"

#include "gateway/access_log.h"
#include "obs/trace_exporter.h"

namespace sluice::gateway {

std::string_view doing_now(const obs::RequestRecord& record) {
  if (record.phases.empty()) return "waiting for its turn";
  const auto& [phase, at] = record.phases.back();
  if (!record.tries.empty() && record.tries.back().failed_at.value_or(Duration(-1)) >= at) {
    return "going to another attempt";
  }
  if (phase == "admitted") return "reading the request";
  if (phase == "read") return "choosing a worker";
  if (phase == "chosen") return "connecting and sending the request";
  if (phase == "sent") return "waiting for the response head";
  return "relaying the answer";
}

void report(Context& context, const net::ServerExchange& client, obs::RequestRecord record) {
  if (context.access_log != nullptr) context.access_log->add(record, client.request(), client.peer_address());
  if (record.trace) context.tracer->add(record);
  context.journal.add(std::move(record));
}

}  // namespace sluice::gateway
