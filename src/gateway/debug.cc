#include "gateway/debug.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "gateway/error_shape.h"
#include "gateway/mailbox.h"
#include "gateway/report.h"
#include "protocol/json.h"
#include "routing/text_mark.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;
using net::Response;
using net::Task;
using obs::RequestRecord;

constexpr Duration kBound = std::chrono::seconds(1);  // for the answers of other threads
constexpr size_t kMostLooks = 20'000;                 // at the live exchanges of one loop

Response json_response(const Json& document) { return Response::json(200, protocol::dump(document)); }

// The number in the query, or `usual`; kInvalidArgument outside of `least` to `most`.
Result<size_t> number_in(const net::RequestHead& head, std::string_view name, size_t usual, size_t least, size_t most) {
  const auto text = net::query_value(head.query(), name);
  if (!text) return usual;
  size_t number = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
  if (error == std::errc() && end == text->data() + text->size() && number >= least && number <= most) return number;
  return Error{ErrorCode::kInvalidArgument, fmt::format("{} must be a number from {} to {}", name, least, most)};
}

Response bad_request(const Error& error) { return error_response(400, "bad_request", error.message); }

// Names of workers by their numbers, as far as they are there.
class Names {
 public:
  explicit Names(const Fleet& fleet) : workers_(fleet.snapshot()) {}
  const WorkerList& workers() const { return *workers_; }
  const Worker* find(uint32_t number) const {
    const auto at = std::ranges::lower_bound(*workers_, number, {}, [](const auto& worker) { return worker->number; });
    return at == workers_->end() || (*at)->number != number ? nullptr : at->get();
  }
  std::string of(uint32_t number) const {
    const Worker* worker = find(number);
    return worker == nullptr ? fmt::format("removed worker {}", number) : worker->url;
  }

 private:
  const std::shared_ptr<const WorkerList> workers_;
};

Json try_json(const RequestRecord::Try& made, const Names& names) {
  Json scores = Json::array();
  for (const RequestRecord::Score& score : made.scores) {
    const bool chosen = score.worker == made.number;
    scores.push_back({{"worker", chosen ? made.worker : names.of(score.worker)},
                      {"cost", score.cost},
                      {"matched_share", score.matched_share},
                      {"usable", chosen || score.why_not.empty()},
                      {"why_not", chosen || score.why_not.empty() ? Json() : Json(score.why_not)},
                      {"chosen", chosen}});
  }
  Json document{{"worker", made.worker},
                {"policy", made.policy},
                {"reason", made.reason},
                {"matched_share", made.matched_share},
                {"scores", std::move(scores)}};
  if (made.failed_at) {
    document["failed_at"] = seconds(*made.failed_at);
    document["status"] = made.status == 0 ? Json() : Json(made.status);
    document["error"] = made.error;
  }
  return document;
}

Json record_json(const RequestRecord& record, const Names& names) {
  Json phases = Json::object(), tries = Json::array();
  for (const auto& [name, at] : record.phases) phases[std::string(name)] = seconds(at);
  for (const auto& made : record.tries) tries.push_back(try_json(made, names));
  const auto known = [](int64_t count) { return count < 0 ? Json() : Json(count); };
  Json document{
      {"id", record.id},
      {"started", static_cast<double>(record.started_unix_nanos / 1'000'000) / 1000.0},
      {"route", record.route},
      {"model", record.model},
      {"stream", record.stream},
      {"worker", record.worker()},
      {"attempts", record.attempts},
      {"status", record.status},
      {"outcome", record.outcome},
      {"error_code", record.error_code},
      {"detail", record.detail},
      {"took", seconds(record.took)},
      {"phases", std::move(phases)},
      {"tries", std::move(tries)},
      {"prompt", {{"bytes", record.prompt_bytes}, {"hash", routing::hash_digits(record.prompt_hash)}}},
      {"answer_bytes", record.answer_bytes},
      {"tokens",
       {{"prompt", known(record.prompt_tokens)},
        {"cached", known(record.cached_tokens)},
        {"output", known(record.output_tokens)}}},
  };
  if (record.trace) document["trace_id"] = obs::to_hex(record.trace->trace_id);
  return document;
}

// Which requests are asked for.
struct Wanted {
  size_t count = 0;  // of each kind
  bool live = true, recent = true;
  std::string worker;  // URL; empty = any
  int status = -1;     // -1 = any
  int status_class = 0;
  bool errors = false;

  static Result<Wanted> from(AdminCall& call) {
    const std::string_view query = call.head.query();
    Wanted wanted;
    SLUICE_TRY(wanted.count, number_in(call.head, "count", 100, 1, 1000));
    const std::string state = net::query_value(query, "state").value_or("all");
    if (state != "all" && state != "live" && state != "recent") {
      return Error{ErrorCode::kInvalidArgument, "state must be one of: all, live, recent"};
    }
    wanted.live = state != "recent";
    wanted.recent = state != "live";
    if (const auto worker = net::query_value(query, "worker")) {
      const WorkerPtr known = call.context.fleet.find(*worker);
      wanted.worker = known == nullptr ? *worker : known->url;
    }
    if (const auto status = net::query_value(query, "status")) SLUICE_TRY_VOID(wanted.read_status(*status));
    return wanted;
  }

  Result<void> read_status(const std::string& text) {
    live = false;  // they have none yet
    if (text == "error") {
      errors = true;
      return {};
    }
    if (text.size() == 3 && text[0] >= '1' && text[0] <= '5' && text.substr(1) == "xx") {
      status_class = text[0] - '0';
      return {};
    }
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), status);
    if (error == std::errc() && end == text.data() + text.size() && status >= 0 && status <= 999) return {};
    return Error{ErrorCode::kInvalidArgument,
                 "status must be a status like 503, a class like 5xx, 0 for clients that left, or error"};
  }

  bool matches(const RequestRecord& record) const {
    if (!worker.empty() && std::ranges::find(record.tries, worker, &RequestRecord::Try::worker) == record.tries.end()) {
      return false;
    }
    if (errors && record.outcome == "ok") return false;
    if (status_class != 0 && record.status / 100 != status_class) return false;
    return status < 0 || record.status == status;
  }
};

struct LiveRecords {
  struct One {
    RequestRecord record;
    Duration age{};
  };
  std::vector<One> oldest;
  size_t matching = 0;
};

// On the loop's thread.
LiveRecords look_at(const LoopState& loop, const Wanted& wanted, TimePoint now) {
  LiveRecords found;
  size_t looks = kMostLooks;
  loop.exchanges.each([&](const LiveExchanges::Entry& entry) {
    if (!wanted.matches(entry.record)) return --looks > 0;
    if (found.oldest.size() < wanted.count) found.oldest.push_back({entry.record, now - entry.begun});
    ++found.matching;
    return --looks > 0;
  });
  return found;
}

Task<LiveRecords> live_records(AdminCall& call, std::shared_ptr<const Wanted> wanted) {
  Mailbox<LiveRecords> mailbox(call.loop.loop, call.loops.size());
  for (const auto& loop : call.loops) {
    loop->loop.post([answer = mailbox.slot(), &there = *loop, wanted, now = call.context.clock.now()] {
      answer(look_at(there, *wanted, now));
    });
  }
  LiveRecords all;
  auto parts = co_await mailbox.collect(kBound);
  for (LiveRecords& part : parts) {
    all.matching += part.matching;
    std::ranges::move(part.oldest, std::back_inserter(all.oldest));
  }
  std::ranges::sort(all.oldest, [](const auto& a, const auto& b) { return a.age > b.age; });
  if (all.oldest.size() > wanted->count) all.oldest.resize(wanted->count);
  co_return all;
}

// Of sorted values, in seconds; null of none.
Json percentiles(std::vector<Duration> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  const auto at = [&](double share) {
    return seconds(values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)]);
  };
  return {{"p50", at(0.5)}, {"p90", at(0.9)}, {"p99", at(0.99)}};
}

// What the journal says of one worker, or of all.
struct Recent {
  size_t attempts = 0, failures = 0;
  std::vector<Duration> first_byte, took;  // of answers that went well

  void add(const RequestRecord& record) {
    took.push_back(record.took);
    if (const auto first = record.phase_at("first_byte")) first_byte.push_back(*first);
  }
};

struct Recents {
  std::map<uint32_t, Recent> by_worker;
  Recent all;
  double per_second = 0;  // requests that came in, over the last ten seconds
};

Recents read_recents(const obs::Journal& journal, int64_t now) {
  constexpr int64_t kWindow = 10'000'000'000;
  Recents recents;
  size_t in_window = 0, total = 0;
  int64_t oldest = now;
  journal.each([&](const RequestRecord& record) {
    if (record.started_unix_nanos > now) return;  // the clock was set back since
    ++total;
    in_window += record.started_unix_nanos > now - kWindow ? 1 : 0;
    oldest = std::min(oldest, record.started_unix_nanos);
    for (const auto& made : record.tries) {
      Recent& of = recents.by_worker[made.number];
      ++of.attempts;
      of.failures += made.failed_at ? 1 : 0;
    }
    if (record.tries.empty() || record.outcome != "ok") return;
    recents.by_worker[record.tries.back().number].add(record);
    recents.all.add(record);
  });
  // A journal that holds less than the window tells of a shorter one.
  const int64_t window = in_window == total ? std::min(kWindow, now - oldest) : kWindow;
  if (window > 0) recents.per_second = static_cast<double>(in_window) * 1e9 / static_cast<double>(window);
  return recents;
}

Json share_json(double share) { return share < 0 ? Json() : Json(share); }

}  // namespace

Task<Response> debug_why(AdminCall& call) {
  const std::string id = net::percent_decode(call.path.substr(std::string_view("/debug/why/").size()));
  const auto record = call.context.journal.find(id);
  if (!record) co_return error_response(404, "unknown_request", "no such request among the latest ones");
  co_return json_response(record_json(*record, Names(call.context.fleet)));
}

Task<Response> debug_requests(AdminCall& call) {
  auto read = Wanted::from(call);
  if (!read.ok()) co_return bad_request(read.error());
  const auto wanted = std::make_shared<const Wanted>(std::move(read).value());
  const Names names(call.context.fleet);
  Json document{{"now", static_cast<double>(call.context.clock.unix_nanos() / 1'000'000) / 1000.0}};
  if (wanted->live) {
    const LiveRecords live = co_await live_records(call, wanted);
    Json list = Json::array();
    for (const auto& [record, age] : live.oldest) {
      Json one = record_json(record, names);
      one["age"] = seconds(age);
      one["doing"] = doing_now(record);
      list.push_back(std::move(one));
    }
    document["live_total"] = live.matching;
    document["live"] = std::move(list);
  }
  if (wanted->recent) {
    Json list = Json::array();
    const obs::Journal::Filter matches = [&](const RequestRecord& record) { return wanted->matches(record); };
    for (const RequestRecord& record : call.context.journal.latest(wanted->count, matches)) {
      list.push_back(record_json(record, names));
    }
    document["recent"] = std::move(list);
  }
  co_return json_response(document);
}

Task<Response> debug_index(AdminCall& call) {
  const auto top = number_in(call.head, "top", 20, 0, 100);
  if (!top.ok()) co_return bad_request(top.error());
  Mailbox<routing::PrefixIndexReport> mailbox(call.loop.loop, 1);
  call.context.index.report(*top, mailbox.slot());
  const auto reports = co_await mailbox.collect(kBound);
  if (reports.empty()) co_return error_response(503, "index_busy", "the prefix index did not report within a second");
  const auto& report = reports.front();

  const Names names(call.context.fleet);
  Json workers = Json::array(), prefixes = Json::array();
  size_t removed = 0;
  for (const auto& [number, bytes] : report.worker_bytes) {
    const Worker* worker = names.find(number);
    if (worker == nullptr) {
      removed += bytes;
      continue;
    }
    const size_t limit = worker->load->belief.limit_bytes();
    const bool limited = limit != routing::CacheBelief::kNoLimit;
    workers.push_back({{"url", worker->url}, {"bytes", bytes}, {"limit_bytes", limited ? Json(limit) : Json()}});
  }
  for (const auto& prefix : report.prefixes) {
    Json holders = Json::array();
    for (const uint32_t holder : prefix.holders) holders.push_back(names.of(holder));
    prefixes.push_back({{"bytes", prefix.bytes},
                        {"hash", routing::hash_digits(prefix.hash)},
                        {"inserts", prefix.inserts},
                        {"continuations", prefix.continuations},
                        {"num_holders", prefix.num_holders},
                        {"holders", std::move(holders)}});
  }
  const auto stats = call.context.index.stats();
  co_return json_response({{"bytes", stats.bytes},
                           {"budget_bytes", call.context.options.prefix_index_bytes},
                           {"nodes", stats.nodes},
                           {"inserts", stats.inserts},
                           {"dropped_inserts", stats.dropped_inserts},
                           {"withdrawn_inserts", stats.withdrawn_inserts},
                           {"evictions",
                            {{"budget", stats.evictions_budget},
                             {"size", stats.evictions_size},
                             {"worker", stats.evictions_worker},
                             {"age", stats.evictions_age}}},
                           {"workers", std::move(workers)},
                           {"bytes_of_removed_workers", removed},
                           {"prefixes", std::move(prefixes)}});
}

Task<Response> debug_workers(AdminCall& call) {
  Context& context = call.context;
  const Names names(context.fleet);
  const Recents recents = read_recents(context.journal, context.clock.unix_nanos());
  const auto& recent = recents.by_worker;
  Json workers = Json::array();
  for (const WorkerPtr& worker : names.workers()) {
    const auto at = recent.find(worker->number);
    const Recent of = at == recent.end() ? Recent{} : at->second;
    const auto state = worker->breaker.state();
    workers.push_back({{"id", worker->id},
                       {"url", worker->url},
                       {"model", worker->info(&Worker::Info::model_id)},
                       {"status", worker->status()},
                       {"suspect", worker->suspect.load()},
                       {"breaker", to_string(state)},
                       {"load", worker->load->requests.load()},
                       {"load_tokens", worker->load->tokens.load()},
                       {"cache_belief", worker->load->belief.share()},
                       {"cache_reported", worker->load->belief.confirmed()},
                       {"tokens",
                        {{"prompt", worker->series.prompt_tokens.value()},
                         {"cached", worker->series.cached_tokens.value()},
                         {"predicted", worker->series.predicted_tokens.value()}}},
                       {"attempts", of.attempts},
                       {"failures", of.failures},
                       {"first_byte", percentiles(of.first_byte)},
                       {"took", percentiles(of.took)}});
  }
  const TimePoint now = context.clock.now();
  co_return json_response({{"policy", context.options.policy},
                           {"draining", context.draining.load()},
                           {"in_flight", context.admission.in_flight()},
                           {"queued", context.admission.queued()},
                           {"hit_rate",
                            {{"predicted", share_json(context.hits.predicted.value(now))},
                             {"reported", share_json(context.hits.reported.value(now))}}},
                           {"requests_per_second", recents.per_second},
                           {"first_byte", percentiles(recents.all.first_byte)},
                           {"took", percentiles(recents.all.took)},
                           {"workers", std::move(workers)}});
}

}  // namespace sluice::gateway
