#include "engine/dispatcher.h"

#include <algorithm>

namespace sluice::engine {
namespace {

// A request that was on two ranks when they died may well be the cause: it does not get a third.
constexpr int kMaxDispatches = 2;

}  // namespace

Dispatcher::Dispatcher(const LoadBalanceRow& method, const LoadBoard& board, const Clock& clock)
    : method_(method), budget_(board, clock), incarnations_(static_cast<size_t>(board.size())) {
  if (method.looks_at_prefixes) prefixes_.emplace(board.size());
}

Result<int64_t> Dispatcher::submit(GenerateRequest request, std::optional<int64_t> pinned_rank,
                                   Backend::OnOutput on_output) {
  std::lock_guard lock(mutex_);
  const auto ranks = static_cast<int64_t>(incarnations_.size());
  if (pinned_rank && (*pinned_rank < 0 || *pinned_rank >= ranks)) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("data-parallel rank {} does not exist: the valid range is 0 to {}", *pinned_rank, ranks - 1)};
  }
  if (flights_.contains(request.rid)) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("rid '{}' is in use by a request in flight", request.rid)};
  }
  if (pinned_rank && incarnations_[static_cast<size_t>(*pinned_rank)] == 0) {
    return Error{ErrorCode::kUnavailable, fmt::format("data-parallel rank {} is down and restarting", *pinned_rank)};
  }
  const auto rank = pinned_rank ? pinned_rank : choose(request);
  if (!rank) return Error{ErrorCode::kUnavailable, "every data-parallel rank is down and restarting"};
  std::string rid = request.rid;
  Flight& flight = flights_[std::move(rid)];
  flight.request = std::move(request);
  flight.on_output = std::make_shared<const Backend::OnOutput>(std::move(on_output));
  flight.pinned = pinned_rank.has_value();
  dispatch(flight, *rank);
  return *rank;
}

void Dispatcher::abort(const std::string& rid) {
  std::lock_guard lock(mutex_);
  const auto found = flights_.find(rid);
  if (found == flights_.end()) return;
  found->second.aborted = true;
  outgoing_.push_back({found->second.rank, found->second.incarnation, AbortRequest{.rid = rid}});
}

void Dispatcher::abort_all() {
  std::lock_guard lock(mutex_);
  for (auto& [rid, flight] : flights_) flight.aborted = true;
  for (size_t i = 0; i < incarnations_.size(); ++i) {
    if (incarnations_[i] != 0) {
      outgoing_.push_back({static_cast<int64_t>(i), incarnations_[i], AbortRequest{.all = true}});
    }
  }
}

std::vector<std::string> Dispatcher::running() const {
  std::lock_guard lock(mutex_);
  std::vector<std::string> rids;
  rids.reserve(flights_.size());
  for (const auto& [rid, flight] : flights_) rids.push_back(rid);
  return rids;
}

std::vector<Dispatcher::Outgoing> Dispatcher::take_outgoing() {
  std::lock_guard lock(mutex_);
  return std::exchange(outgoing_, {});
}

std::vector<Dispatcher::Delivery> Dispatcher::outputs(int64_t rank, uint64_t incarnation, OutputBatch batch) {
  std::vector<Delivery> deliveries;
  deliveries.reserve(batch.outputs.size());
  std::lock_guard lock(mutex_);
  for (RequestOutput& output : batch.outputs) {
    const auto found = flights_.find(output.rid);
    if (found == flights_.end()) continue;
    Flight& flight = found->second;
    if (flight.rank != rank || flight.incarnation != incarnation) continue;
    if (!flight.started) {
      budget_.computed(rank, flight.seq);
      if (prefixes_ && output.times.begun_unix_nanos != 0) {
        prefixes_->answered(rank, flight.prefix.cached, output);
      } else if (prefixes_) {
        prefixes_->refused(rank, flight.request, flight.prefix);
      }
      flight.request = {};
    }
    flight.started = true;
    flight.counts.prompt_tokens = output.prompt_tokens;
    flight.counts.completion_tokens = output.completion_tokens;
    flight.counts.cached_tokens = output.cached_tokens;
    flight.counts.retractions = output.retractions;
    flight.counts.times = output.times;
    output.dp_rank = rank;
    const bool last = output.finish.kind != FinishKind::kNone;
    deliveries.push_back({flight.on_output, std::move(output)});
    if (!last) continue;
    budget_.ended(rank, flight.seq);
    flights_.erase(found);
  }
  return deliveries;
}

void Dispatcher::rank_ready(int64_t rank, uint64_t incarnation) {
  std::lock_guard lock(mutex_);
  incarnations_[static_cast<size_t>(rank)] = incarnation;
  budget_.set_active(rank, true);
}

Dispatcher::Lost Dispatcher::ranks_lost(std::span<const int64_t> ranks, const std::string& cause) {
  std::lock_guard lock(mutex_);
  for (const int64_t rank : ranks) {
    incarnations_[static_cast<size_t>(rank)] = 0;
    budget_.set_active(rank, false);
    if (prefixes_) prefixes_->forget(rank);
  }
  std::vector<Flights::iterator> affected;
  for (auto it = flights_.begin(); it != flights_.end(); ++it) {
    if (std::ranges::find(ranks, it->second.rank) != ranks.end()) affected.push_back(it);
  }
  // In the order in which they came.
  std::ranges::sort(affected, {}, [](const auto& it) { return it->second.request.dispatch_seq; });
  Lost lost;
  for (const auto& it : affected) {
    Flight& flight = it->second;
    if (const auto other = may_move(flight) ? choose(flight.request) : std::nullopt) {
      dispatch(flight, *other);
      ++lost.moved;
      continue;
    }
    const bool second = flight.dispatches >= kMaxDispatches;
    const std::string message =
        fmt::format("data-parallel rank {} ended{}: {}", flight.rank,
                    second ? ", the second one with this request, which is not tried again" : "", cause);
    // Where nothing was answered yet, the client may well try again, but not with what ended two of them: 503.
    auto last = last_output(it->first, flight, flight.started || second ? 500 : 503, message, /*rank_ended=*/true);
    last.output.finish.ended_two = second && last.output.finish.rank_ended;
    lost.ended.push_back(std::move(last));
    flights_.erase(it);
  }
  return lost;
}

std::vector<Dispatcher::Delivery> Dispatcher::end_all(const std::string& cause) {
  std::lock_guard lock(mutex_);
  std::vector<Delivery> ended;
  for (auto& [rid, flight] : flights_) ended.push_back(last_output(rid, flight, 503, cause));
  flights_.clear();
  return ended;
}

std::vector<size_t> Dispatcher::in_flight() const {
  std::lock_guard lock(mutex_);
  std::vector<size_t> counts(incarnations_.size());
  for (const auto& [rid, flight] : flights_) counts[static_cast<size_t>(flight.rank)] += 1;
  return counts;
}

LoadSnapshot Dispatcher::word(int64_t rank) const {
  std::lock_guard lock(mutex_);
  return budget_.word(rank);
}

bool Dispatcher::may_move(const Flight& flight) const {
  return !flight.started && !flight.pinned && !flight.aborted && flight.dispatches < kMaxDispatches;
}

void Dispatcher::rank_flushed(int64_t rank) {
  std::lock_guard lock(mutex_);
  if (prefixes_) prefixes_->forget(rank);
}

std::optional<int64_t> Dispatcher::choose(const GenerateRequest& request) {
  const std::span<RankLoad> loads = budget_.loads();
  if (prefixes_) prefixes_->expect(request, loads);
  const auto rank = method_.choose(loads, previous_);
  if (rank) previous_ = *rank;
  return rank;
}

void Dispatcher::dispatch(Flight& flight, int64_t rank) {
  flight.rank = rank;
  flight.incarnation = incarnations_[static_cast<size_t>(rank)];
  flight.request.dispatch_seq = flight.seq = ++last_seq_;
  ++flight.dispatches;
  if (prefixes_) {
    prefixes_->capacity(rank, budget_.word(rank).max_total_num_tokens);
    flight.prefix = prefixes_->dispatched(rank, flight.request);
  }
  const auto tokens = static_cast<int64_t>(flight.request.input_ids.size());
  budget_.dispatched(rank, last_seq_, tokens, tokens - flight.prefix.cached);
  outgoing_.push_back({rank, flight.incarnation, flight.request});
}

Dispatcher::Delivery Dispatcher::last_output(const std::string& rid, Flight& flight, int32_t status,
                                             const std::string& message, bool rank_ended) {
  RequestOutput output = std::move(flight.counts);
  output.rid = rid;
  output.dp_rank = flight.rank;
  output.finish = {.kind = FinishKind::kAbort, .message = message, .status_code = status, .rank_ended = rank_ended};
  // Who asked for the end gets it as asked.
  if (flight.aborted) output.finish = {.kind = FinishKind::kAbort, .message = "Aborted"};
  if (!flight.started) output.prompt_tokens = static_cast<int64_t>(flight.request.input_ids.size());
  return {std::move(flight.on_output), std::move(output)};
}

}  // namespace sluice::engine
