#include "models/expert_mover.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace sluice::models {

using kernels::Context;
using moe::ExpertMove;
using parallel::Element;

ExpertMover::ExpertMover(WeightStore& weights, std::span<const ExpertLayer> layers)
    : weights_(weights),
      layers_(layers),
      groups_(*weights.groups()),
      layout_(groups_.layout),
      own_(weights.expert_map()->physical / layout_.ep_size) {
  size_t most = 0;
  for (const ExpertLayer& layer : layers) most = std::max(most, bytes_of(layer));
  spare_ = weights.reserve("spare experts", most * static_cast<size_t>(own_));
  outbox_ = weights.reserve("an expert on its way", most);
}

Result<void> ExpertMover::check_alike() const {
  std::vector<int64_t> shapes;
  for (const ExpertLayer& layer : layers_) {
    for (const ExpertsWeight* weight : {&layer.gate_up, &layer.down}) {
      shapes.push_back(static_cast<int64_t>(weight->shape.stored));
      shapes.push_back(static_cast<int64_t>(weight->stride));
    }
  }
  const auto count = std::ssize(shapes);
  std::vector<int64_t> all(shapes.size() * static_cast<size_t>(layout_.tp_size));
  SLUICE_TRY_VOID(groups_.all->all_gather({}, Element::kI64, shapes.data(), all.data(), count));
  // Of those that share experts each has others to exchange with, and may have cut blocks of FP8 otherwise.
  for (int64_t rank = layout_.expert_tp().rank; rank < layout_.tp_size; rank += layout_.expert_tp_size()) {
    const auto theirs = all.begin() + rank * count;
    const auto [differs, end] = std::mismatch(shapes.begin(), shapes.end(), theirs);
    if (differs == shapes.end()) continue;
    const auto layer = static_cast<size_t>((differs - shapes.begin()) / 4);
    return Error{ErrorCode::kBadOption,
                 fmt::format("--enable-eplb: the experts of layer {} are not all stored in the same type, so they "
                             "cannot move between ranks {} and {}",
                             layers_[layer].number, layout_.tp_rank, rank)};
  }
  return {};
}

// Ranks that share experts have different columns of them: what one has comes from the same one of the sharers.
ExpertMover::Place ExpertMover::place_of(int32_t copy) const {
  return {copy / own_ * layout_.expert_tp_size() + layout_.expert_tp().rank, copy % own_};
}

bool ExpertMover::is_here(const Place& place) const { return place.rank == layout_.tp_rank; }

char* ExpertMover::spare(const ExpertLayer& layer, int64_t slot) const {
  return weights_.writable(spare_) + static_cast<size_t>(slot) * bytes_of(layer);
}

namespace {

size_t at(const ExpertsWeight& weight, int64_t slot) {
  return weight.offset + static_cast<size_t>(slot) * weight.stride;
}

}  // namespace

void ExpertMover::copy_out(const Context& context, const ExpertLayer& layer, int64_t slot, char* to) const {
  context.backend->copy(context, to, weights_.writable(at(layer.gate_up, slot)), layer.gate_up.stride);
  context.backend->copy(context, to + layer.gate_up.stride, weights_.writable(at(layer.down, slot)), layer.down.stride);
}

uint64_t ExpertMover::checksum(const Context& context, const ExpertLayer& layer, const char* gate_up,
                               const char* down) const {
  std::vector<char> staged;
  context.backend->synchronize(context);
  if (!context.backend->host_visible()) {
    staged.resize(bytes_of(layer));
    context.backend->copy_to_host(context, staged.data(), gate_up, layer.gate_up.stride);
    context.backend->copy_to_host(context, staged.data() + layer.gate_up.stride, down, layer.down.stride);
    context.backend->synchronize(context);
    gate_up = staged.data();
    down = gate_up + layer.gate_up.stride;
  }
  const uint64_t first = XXH3_64bits(gate_up, layer.gate_up.stride);
  return XXH3_64bits_withSeed(down, layer.down.stride, first);
}

// Slot by slot, and as often as some rank has one to send: so little is on its way at once.
Result<uint64_t> ExpertMover::stage(const Context& context, const ExpertLayer& layer,
                                    std::span<const ExpertMove> moves) {
  uint64_t moved = 0;
  for (int64_t slot = 0; slot < own_; ++slot) {
    std::vector<std::vector<ExpertMove>> rounds;
    std::vector<size_t> sent(static_cast<size_t>(layout_.tp_size));
    for (const ExpertMove& move : moves) {
      const Place from = place_of(move.from), to = place_of(move.to);
      if (to.slot != slot) continue;
      if (from.rank == to.rank) {
        if (is_here(to)) copy_out(context, layer, from.slot, spare(layer, slot));
        continue;
      }
      const size_t round = sent[static_cast<size_t>(from.rank)]++;
      if (round == rounds.size()) rounds.emplace_back();
      rounds[round].push_back(move);
      moved += bytes_of(layer) * static_cast<uint64_t>(layout_.expert_tp_size());
    }
    for (const auto& round : rounds) SLUICE_TRY_VOID(exchange(context, layer, round));
  }
  return moved;
}

Result<void> ExpertMover::exchange(const Context& context, const ExpertLayer& layer,
                                   std::span<const ExpertMove> moves) {
  const auto bytes = static_cast<int64_t>(bytes_of(layer));
  std::vector<int64_t> send(static_cast<size_t>(layout_.tp_size)), receive(send.size());
  char* const outbox = weights_.writable(outbox_);
  char* inbox = outbox;  // of a rank that gets nothing
  for (const ExpertMove& move : moves) {
    const Place from = place_of(move.from), to = place_of(move.to);
    if (is_here(from)) {
      copy_out(context, layer, from.slot, outbox);
      send[static_cast<size_t>(to.rank)] = bytes;
    }
    if (is_here(to)) {
      inbox = spare(layer, to.slot);
      receive[static_cast<size_t>(from.rank)] = bytes;
    }
  }
  return groups_.all->all_to_all_v(context, Element::kU8, outbox, send, inbox, receive);
}

Result<std::optional<std::string>> ExpertMover::compare(const Context& context, const ExpertLayer& layer,
                                                        std::span<const ExpertMove> moves, uint64_t fingerprint) const {
  std::vector<int64_t> sums(static_cast<size_t>(own_)), all_sums(static_cast<size_t>(own_ * layout_.tp_size));
  for (const ExpertMove& move : moves) {
    const Place from = place_of(move.from);
    int64_t& sum = sums[static_cast<size_t>(from.slot)];
    if (!is_here(from) || sum != 0) continue;
    sum = static_cast<int64_t>(checksum(context, layer, weights_.writable(at(layer.gate_up, from.slot)),
                                        weights_.writable(at(layer.down, from.slot))));
  }
  SLUICE_TRY_VOID(groups_.all->all_gather({}, Element::kI64, sums.data(), all_sums.data(), own_));
  // What all ranks must agree in before any of them changes its layer.
  struct Vote {
    int64_t fingerprint;
    int64_t damaged = -1;  // a place
    int64_t from = -1;
  };
  Vote mine{.fingerprint = static_cast<int64_t>(fingerprint)};
  for (const ExpertMove& move : moves) {
    const Place from = place_of(move.from), to = place_of(move.to);
    if (!is_here(to)) continue;
    const char* arrived = spare(layer, to.slot);
    const auto sum = static_cast<int64_t>(checksum(context, layer, arrived, arrived + layer.gate_up.stride));
    if (sum == all_sums[static_cast<size_t>(from.rank * own_ + from.slot)]) continue;
    mine.damaged = move.to;
    mine.from = from.rank;
  }
  std::vector<Vote> votes(static_cast<size_t>(layout_.tp_size));
  SLUICE_TRY_VOID(groups_.all->all_gather({}, Element::kI64, &mine, votes.data(), sizeof(Vote) / sizeof(int64_t)));
  std::optional<std::string> damage;
  for (size_t rank = 0; rank < votes.size(); ++rank) {
    if (votes[rank].fingerprint != votes[0].fingerprint) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("ranks 0 and {} are about to place the experts of layer {} unlike", rank, layer.number)};
    }
    if (votes[rank].damaged < 0 || damage) continue;
    damage = fmt::format("what rank {} got from rank {} for place {} is not what was sent", rank, votes[rank].from,
                         votes[rank].damaged);
  }
  return damage;
}

Result<ExpertMover::Moved> ExpertMover::move(const Context& context, const ExpertLayer& layer,
                                             std::span<const ExpertMove> moves, uint64_t fingerprint) {
  Moved moved;
  SLUICE_TRY(moved.bytes, stage(context, layer, moves));
  SLUICE_TRY(moved.damage, compare(context, layer, moves, fingerprint));
  if (moved.damage) return moved;
  for (const ExpertMove& move : moves) {
    const Place to = place_of(move.to);
    if (!is_here(to)) continue;
    const char* arrived = spare(layer, to.slot);
    context.backend->copy(context, weights_.writable(at(layer.gate_up, to.slot)), arrived, layer.gate_up.stride);
    context.backend->copy(context, weights_.writable(at(layer.down, to.slot)), arrived + layer.gate_up.stride,
                          layer.down.stride);
  }
  return moved;
}

}  // namespace sluice::models
