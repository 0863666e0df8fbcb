#include "engine/control_rounds.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace sluice::engine {

void ControlRounds::begin(ControlRequest& request, std::set<size_t> ranks, Duration at_most, Backend::OnControl done) {
  request.id = ++last_id_;
  if (request.kind == ControlKind::kPauseAbort || request.kind == ControlKind::kPauseRetract ||
      request.kind == ControlKind::kPauseInPlace) {
    paused_ = true;
  } else if (request.kind == ControlKind::kContinue) {
    paused_ = false;
  }
  rounds_.push_back({.request = request,
                     .waiting_for = std::move(ranks),
                     .at_most = at_most,
                     .due = clock_.now() + at_most,
                     .done = std::move(done),
                     .done_by_some = false,
                     .refusals = {},
                     .answers = {}});
  finish_if_answered(std::prev(rounds_.end()));
}

std::optional<ControlKind> ControlRounds::asked(size_t rank, uint64_t id) const {
  const auto round = std::ranges::find(rounds_, id, [](const Round& r) { return r.request.id; });
  if (round == rounds_.end() || !round->waiting_for.contains(rank)) return std::nullopt;
  return round->request.kind;
}

void ControlRounds::take(size_t rank, ControlReply reply) {
  const auto round = std::ranges::find(rounds_, reply.id, [](const Round& r) { return r.request.id; });
  if (round == rounds_.end() || round->waiting_for.erase(rank) == 0) return;
  if (reply.ok) {
    round->done_by_some = true;
    if (!reply.message.empty()) round->answers.emplace(static_cast<int64_t>(rank), std::move(reply.message));
  } else {
    round->refusals.push_back(fmt::format("rank {}: {}", rank, reply.message));
  }
  finish_if_answered(round);
}

void ControlRounds::drop(const std::set<size_t>& ranks) {
  for (auto round = rounds_.begin(); round != rounds_.end();) {
    for (const size_t rank : ranks) round->waiting_for.erase(rank);
    round = finish_if_answered(round);
  }
}

void ControlRounds::expire() {
  for (auto round = rounds_.begin(); round != rounds_.end();) {
    if (clock_.now() < round->due) {
      ++round;
      continue;
    }
    round = finish(
        round, Error{ErrorCode::kTimeout, fmt::format("no answer within {:.0f} s from rank {}", seconds(round->at_most),
                                                      fmt::join(round->waiting_for, ", "))});
  }
}

void ControlRounds::cancel_all(const std::string& why) {
  while (!rounds_.empty()) finish(rounds_.begin(), Error{ErrorCode::kCancelled, why});
}

bool ControlRounds::waits_for(size_t rank) const {
  return std::ranges::any_of(rounds_, [&](const Round& round) { return round.waiting_for.contains(rank); });
}

std::optional<TimePoint> ControlRounds::due() const {
  if (rounds_.empty()) return std::nullopt;
  return std::ranges::min_element(rounds_, {}, &Round::due)->due;
}

std::string ControlRounds::model_file() const {
  std::string file = loaded_;
  for (const Round& round : rounds_) {
    if (round.request.kind == ControlKind::kLoadWeights) file = round.request.text;
  }
  return file;
}

ControlRounds::Place ControlRounds::finish_if_answered(Place round) {
  if (!round->waiting_for.empty()) return std::next(round);
  const bool loads = round->request.kind == ControlKind::kLoadWeights;
  if (!round->refusals.empty()) {
    return finish(round, Error{loads && !round->done_by_some ? ErrorCode::kRefused : ErrorCode::kUnavailable,
                               fmt::format("{}", fmt::join(round->refusals, "; "))});
  }
  // Nobody knows whether they can be loaded.
  if (loads && !round->done_by_some) return finish(round, Error{ErrorCode::kRefused, "no rank is there to load them"});
  if (loads) loaded_ = round->request.text;
  return finish(round, std::move(round->answers));
}

ControlRounds::Place ControlRounds::finish(Place round, Result<Backend::RankAnswers> result) {
  const auto done = std::move(round->done);
  const auto next = rounds_.erase(round);
  done(std::move(result));
  return next;
}

}  // namespace sluice::engine
