#include "engine/api/experts_api.h"

#include <cstdlib>

#include "engine/api/admin_api.h"
#include "engine/expert_report.h"

namespace sluice::engine {
namespace {

constexpr Duration kControlTimeout = std::chrono::seconds(30);  // a step may be under way
constexpr Duration kDumpTimeout = std::chrono::seconds(120);    // records of tokens are long

std::string file_prefix(ApiContext& api) {
  const char* folder = std::getenv("SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR");
  return fmt::format("{}/expert_distribution_recorder_{:.6f}", folder ? folder : "/tmp",
                     static_cast<double>(api.clock.unix_nanos()) / 1e9);
}

net::Response said(const Result<std::string>& result, int status_of_error) {
  if (result.ok()) return net::Response::text(200, *result);
  return error_response(status_of_error, result.error().message);
}

net::Task<> tell(ApiCall& call, std::string command, std::string done) {
  const auto told = co_await control_ranks(call, ControlKind::kRecordExperts, std::move(command), kControlTimeout);
  Result<std::string> result = std::move(done);
  if (!told.ok()) result = told.error();
  co_await answer(call, said(result, 400));
}

Result<std::string> write_records(const std::string& prefix, const Backend::RankAnswers& records) {
  SLUICE_TRY(const ExpertReport report, merge_expert_records(records));
  SLUICE_TRY(const auto paths, write_expert_records(report, records, prefix));
  return fmt::format("Dump expert distribution record, into {}. Balancedness {:.4f} over {} steps.\n",
                     fmt::join(paths, ", "), report.balancedness, report.steps);
}

}  // namespace

net::Task<> start_expert_record(ApiCall& call) { return tell(call, "start", "Start recording expert distribution.\n"); }
net::Task<> stop_expert_record(ApiCall& call) { return tell(call, "stop", "Stop recording expert distribution.\n"); }

net::Task<> dump_expert_record(ApiCall& call) {
  const auto records = co_await ask_ranks(call, ControlKind::kRecordExperts, "dump", kDumpTimeout);
  if (!records.ok()) {
    co_await answer(call, error_response(400, records.error().message));
    co_return;
  }
  size_t bytes = 0;
  for (const auto& [rank, text] : *records) bytes += text.size();
  const std::string prefix = file_prefix(call.api);
  const auto written = co_await run_off_loop(call, bytes, [&] { return write_records(prefix, *records); });
  co_await answer(call, said(written, 500));
}

}  // namespace sluice::engine
