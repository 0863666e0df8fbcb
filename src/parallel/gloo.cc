#include "parallel/gloo.h"

#include <fmt/format.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "parallel/gloo_world.h"
#include "parallel/reduce.h"

namespace sluice::parallel {
namespace {

constexpr size_t kInlineBytes = 2 << 10;  // data up to here come with the header
// all_reduce up to here: everybody adds everything. Beyond, each its share, which takes another exchange.
constexpr size_t kAddAllBytes = 16 << 10;
// Each piece that arrives is a sign of life: what is longer than a slow link moves in the silence limit goes in pieces.
constexpr size_t kPieceBytes = 1 << 20;

// Tags of a group's messages: calls, then data.
uint64_t call_tag(uint64_t group) { return group << 2 | 2; }
uint64_t data_tag(uint64_t group) { return group << 2 | 3; }

// What a rank sends to another with each call: this, 2 * size counts, and data.
class CallMessage {
 public:
  explicit CallMessage(size_t size)
      : counts_(2 * size), bytes_(sizeof(Head) + counts_ * sizeof(int64_t) + kInlineBytes) {}

  std::byte* data() { return bytes_.data(); }
  size_t bytes() const { return bytes_.size(); }
  CallHeader& header() { return head().call; }
  Place& place() { return head().place; }  // its sender's
  std::span<int64_t> counts() { return {reinterpret_cast<int64_t*>(data() + sizeof(Head)), counts_}; }
  std::byte* payload() { return data() + sizeof(Head) + counts_ * sizeof(int64_t); }

 private:
  struct Head {
    CallHeader call;
    Place place;
  };
  Head& head() { return *reinterpret_cast<Head*>(data()); }

  size_t counts_;
  std::vector<std::byte> bytes_;
};

class Gloo final : public Communicator {
 public:
  Gloo(std::shared_ptr<GlooWorld> world, uint64_t group, std::string name, int rank, std::vector<int> world_ranks)
      : Communicator(std::move(name), rank, std::move(world_ranks)), world_(std::move(world)), group_(group) {
    for (int i = 0; i < size(); ++i) peers_.emplace_back(static_cast<size_t>(size()));
  }

  // Before the first call: connections may be lost by now.
  Result<void> begin() {
    return guarded([&] {
      for_peers([&](int peer, Peer& p) {
        p.sending = world_->buffer(p.sent.data(), p.sent.bytes());
        p.receiving = world_->buffer(p.received.data(), p.received.bytes());
        p.receiving->recv(world_rank(peer), call_tag(group_));
      });
    });
  }

  void progress(const Progress& progress) override { world_->progress(progress); }
  Progress last_progress(int rank) const override { return world_->last_progress(world_rank(rank)); }
  void abort(std::string_view reason) override { world_->fail({ErrorCode::kUnavailable, std::string(reason)}); }
  std::optional<Error> failure() const override { return world_->failure(); }

  Result<void> run(const Collective& call) override {
    world_->active();
    header_ = header_of(call, ++sequence_, size());
    call_text_ = to_string(header_);
    since_ = world_->options().clock->now();
    // Whatever happens, nothing touches the caller's memory afterwards; after a call that is done there is nothing
    // left.
    struct Clear {
      Gloo& gloo;
      ~Clear() {
        gloo.receives_.clear();
        gloo.sends_.clear();
      }
    } const clear{*this};
    return carry_out(call);
  }

  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> members, int index,
                                                 std::string_view name) override {
    int64_t group = index == 0 && !members.empty() ? static_cast<int64_t>(world_->next_group()) : 0;
    std::vector<int64_t> groups(peers_.size());
    SLUICE_TRY_VOID(all_gather({}, Element::kI64, &group, groups.data(), 1));
    std::unique_ptr<Gloo> made;
    if (!members.empty()) {
      std::vector<int> ranks;
      for (const int member : members) ranks.push_back(world_rank(member));
      made = std::make_unique<Gloo>(world_, static_cast<uint64_t>(groups[static_cast<size_t>(members[0])]),
                                    std::string(name), index, std::move(ranks));
      SLUICE_TRY_VOID(made->begin());
    }
    return std::unique_ptr<Communicator>(std::move(made));
  }

 private:
  struct Peer {
    explicit Peer(size_t size) : sent(size), received(size), current(size) {}

    CallMessage sent;
    CallMessage received;  // the next call's may come while this rank is still in the last
    CallMessage current;
    std::unique_ptr<GlooBuffer> sending;
    std::unique_ptr<GlooBuffer> receiving;
    bool has_come = false;
  };

  template <class Body>
  void for_peers(Body body) {
    // Not all the same one at once.
    for (int i = 1; i < size(); ++i) {
      at_peer_ = (rank() + i) % size();
      body(at_peer_, peers_[static_cast<size_t>(at_peer_)]);
    }
  }

  Result<void> carry_out(const Collective& call) {
    SLUICE_TRY_VOID(send_calls(call));
    SLUICE_TRY_VOID(receive_calls(call));
    const bool in_shares = call.kind == Kind::kAllReduce && bytes_in(call, rank(), size()) > kAddAllBytes;
    SLUICE_TRY_VOID(in_shares ? all_reduce_in_shares(call) : exchange(call));
    for (int i = 1; i < size(); ++i) {
      const int peer = (rank() + i) % size();
      SLUICE_TRY_VOID(wait_send(*peers_[static_cast<size_t>(peer)].sending, peer));
    }
    return {};
  }

  // gloo says by exceptions that a connection is lost.
  template <class Body>
  Result<void> guarded(Body body) {
    try {
      body();
      return {};
    } catch (const std::exception& e) {
      const int lost = world_rank(at_peer_);
      world_->fail({ErrorCode::kUnavailable,
                    fmt::format("group {}: rank {} has lost rank {} in {}: {}{}", name(), world_rank(rank()), lost,
                                call_text_, e.what(), world_->whereabouts(lost))});
      return *world_->failure();
    }
  }

  Wait wait_for(int peer) {
    missing_.assign(1, world_rank(peer));
    for (int i = 1; i < size(); ++i) {
      const int other = (rank() + i) % size();
      if (other != peer && !peers_[static_cast<size_t>(other)].has_come) missing_.push_back(world_rank(other));
    }
    return {.group = name(), .call = call_text_, .waiting = world_rank(rank()), .missing = missing_, .since = since_};
  }
  Result<void> wait_receive(GlooBuffer& buffer, int peer) {
    SLUICE_TRY_VOID(world_->wait_receive(buffer, wait_for(peer)));
    world_->heard_of(world_rank(peer));
    return {};
  }
  Result<void> wait_send(GlooBuffer& buffer, int peer) {
    SLUICE_TRY_VOID(world_->wait_send(buffer, wait_for(peer)));
    world_->heard_of(world_rank(peer));
    return {};
  }

  Result<void> send_calls(const Collective& call) {
    if (auto failed = world_->failure()) return *failed;
    return guarded([&] {
      for_peers([&](int peer, Peer& p) {
        p.has_come = false;
        p.sent.header() = header_;
        p.sent.place() = world_->place();
        if (call.kind == Kind::kAllToAll) {
          std::ranges::copy(call.counts, p.sent.counts().begin());
          std::ranges::copy(call.recv_counts, p.sent.counts().begin() + size());
        }
        const Range range = range_to(call, rank(), peer, size());
        if (range.bytes > 0 && range.bytes <= kInlineBytes) {
          std::memcpy(p.sent.payload(), static_cast<const std::byte*>(call.in) + range.begin, range.bytes);
        }
        p.sending->send(world_rank(peer), call_tag(group_));
      });
    });
  }

  Result<void> receive_calls(const Collective& call) {
    for (int i = 1; i < size(); ++i) {
      const int peer = at_peer_ = (rank() + i) % size();
      Peer& p = peers_[static_cast<size_t>(peer)];
      SLUICE_TRY_VOID(wait_receive(*p.receiving, peer));
      p.has_come = true;
      std::swap(p.received, p.current);
      world_->heard_of(world_rank(peer), p.current.place());
      SLUICE_TRY_VOID(guarded([&] {
        p.receiving = world_->buffer(p.received.data(), p.received.bytes());
        p.receiving->recv(world_rank(peer), call_tag(group_));
      }));
    }
    std::vector<CallHeader> headers(peers_.size(), header_);
    for_peers([&](int peer, Peer& p) { headers[static_cast<size_t>(peer)] = p.current.header(); });
    SLUICE_TRY_VOID(agreed(check_agreement(name(), headers, world_ranks())));
    if (call.kind != Kind::kAllToAll) return {};
    std::vector<int64_t> mine(call.counts.begin(), call.counts.end());
    mine.insert(mine.end(), call.recv_counts.begin(), call.recv_counts.end());
    std::vector<std::span<const int64_t>> rows(peers_.size(), mine);
    for_peers([&](int peer, Peer& p) { rows[static_cast<size_t>(peer)] = p.current.counts(); });
    return agreed(check_all_to_all(name(), sequence_, rows, world_ranks()));
  }

  Result<void> agreed(Result<void> result) {
    if (result.ok()) return result;
    world_->fail(result.error());
    return *world_->failure();
  }

  // Bytes on their way: to a rank, or from it.
  struct Transfer {
    int peer;
    std::unique_ptr<GlooBuffer> buffer;
    size_t pieces;
  };
  template <class Move>
  void start(std::vector<Transfer>& transfers, int peer, const void* at, size_t bytes, Move move) {
    if (bytes == 0) return;
    Transfer transfer{peer, world_->buffer(const_cast<void*>(at), bytes), (bytes + kPieceBytes - 1) / kPieceBytes};
    for (size_t begin = 0; begin < bytes; begin += kPieceBytes) {
      move(*transfer.buffer, world_rank(peer), begin, std::min(kPieceBytes, bytes - begin));
    }
    transfers.push_back(std::move(transfer));
  }
  void start_send(int peer, const std::byte* at, size_t bytes) {
    start(sends_, peer, at, bytes, [&](GlooBuffer& buffer, int to, size_t begin, size_t length) {
      buffer.send(to, data_tag(group_), begin, length);
    });
  }
  void start_receive(int peer, std::byte* at, size_t bytes) {
    start(receives_, peer, at, bytes, [&](GlooBuffer& buffer, int from, size_t begin, size_t length) {
      buffer.recv(from, data_tag(group_), begin, length);
    });
    count_received(bytes);
  }
  // Until all that was started has arrived and what we sent is gone.
  Result<void> finish_transfers() {
    for (Transfer& transfer : receives_) {
      for (size_t i = 0; i < transfer.pieces; ++i) SLUICE_TRY_VOID(wait_receive(*transfer.buffer, transfer.peer));
    }
    for (Transfer& transfer : sends_) {
      for (size_t i = 0; i < transfer.pieces; ++i) SLUICE_TRY_VOID(wait_send(*transfer.buffer, transfer.peer));
    }
    receives_.clear();
    sends_.clear();
    return {};
  }

  // Everything but large reductions to all: what is sent goes straight to where it is wanted.
  Result<void> exchange(const Collective& call) {
    const int n = size();
    const bool reduces = call.kind == Kind::kAllReduce || call.kind == Kind::kReduceScatter;
    const auto* const in = static_cast<const std::byte*>(call.in);
    auto* const out = static_cast<std::byte*>(call.out);
    const size_t result_bytes = reduces ? bytes_out(call, rank(), n) : 0;
    inputs_.assign(peers_.size(), nullptr);
    if (result_bytes > kInlineBytes) arrived_.resize(result_bytes * peers_.size());
    SLUICE_TRY_VOID(guarded([&] {
      for_peers([&](int peer, Peer& p) {
        const Range here = reduces ? Range{0, result_bytes} : range_from(call, rank(), peer, n);
        std::byte* to = out + here.begin;
        if (reduces) {
          to = here.bytes <= kInlineBytes ? p.current.payload()
                                          : arrived_.data() + static_cast<size_t>(peer) * result_bytes;
          inputs_[static_cast<size_t>(peer)] = to;
        }
        if (here.bytes > kInlineBytes) {
          start_receive(peer, to, here.bytes);
        } else if (here.bytes > 0) {
          if (!reduces) std::memcpy(to, p.current.payload(), here.bytes);
          count_received(here.bytes);
        }
      });
      for_peers([&](int peer, Peer&) {
        const Range range = range_to(call, rank(), peer, n);
        if (range.bytes > kInlineBytes) start_send(peer, in + range.begin, range.bytes);
      });
    }));
    const Range own = range_to(call, rank(), rank(), n);
    const Range place = range_from(call, rank(), rank(), n);
    if (place.bytes > 0 && in + own.begin != out + place.begin) {
      std::memcpy(out + place.begin, in + own.begin, place.bytes);
    }
    SLUICE_TRY_VOID(finish_transfers());
    if (!reduces) return {};
    inputs_[static_cast<size_t>(rank())] = in + own.begin;
    reduce(call.element, call.reduction, inputs_, out, result_bytes);
    return {};
  }

  // all_reduce of much: each rank gets its share of all inputs, adds them and sends the result to all.
  Result<void> all_reduce_in_shares(const Collective& call) {
    const size_t bytes = bytes_in(call, rank(), size());
    const size_t element = bytes_of(call.element);
    const size_t whole = (bytes / element + peers_.size() - 1) / peers_.size() * element;
    const auto share = [&](int rank) {
      const size_t begin = std::min(bytes, static_cast<size_t>(rank) * whole);
      return Range{begin, std::min(whole, bytes - begin)};
    };
    const Range mine = share(rank());
    const auto* const in = static_cast<const std::byte*>(call.in);
    auto* const out = static_cast<std::byte*>(call.out);
    arrived_.resize(mine.bytes * peers_.size());
    inputs_.assign(peers_.size(), in + mine.begin);
    SLUICE_TRY_VOID(guarded([&] {
      for_peers([&](int peer, Peer&) {
        std::byte* const to = arrived_.data() + static_cast<size_t>(peer) * mine.bytes;
        inputs_[static_cast<size_t>(peer)] = to;
        start_receive(peer, to, mine.bytes);
      });
      for_peers([&](int peer, Peer&) { start_send(peer, in + share(peer).begin, share(peer).bytes); });
    }));
    SLUICE_TRY_VOID(finish_transfers());
    reduce(call.element, call.reduction, inputs_, out + mine.begin, mine.bytes);
    SLUICE_TRY_VOID(guarded([&] {
      for_peers([&](int peer, Peer&) { start_receive(peer, out + share(peer).begin, share(peer).bytes); });
      for_peers([&](int peer, Peer&) { start_send(peer, out + mine.begin, mine.bytes); });
    }));
    return finish_transfers();
  }

  const std::shared_ptr<GlooWorld> world_;
  const uint64_t group_;
  std::vector<Peer> peers_;  // by rank; this rank's own is not used
  uint64_t sequence_ = 0;

  // Of the call under way.
  CallHeader header_;
  std::string call_text_ = "start";
  int at_peer_ = 0;  // whose turn it is in a loop over the others
  TimePoint since_{};
  std::vector<int> missing_;
  std::vector<const void*> inputs_;
  std::vector<std::byte> arrived_;
  std::vector<Transfer> receives_;
  std::vector<Transfer> sends_;
};

std::string host_key(int rank) { return fmt::format("host of rank {}", rank); }

// gloo's side of our rendezvous. It reports by exceptions, which join_gloo() catches.
class Store final : public gloo::rendezvous::Store {
 public:
  explicit Store(RendezvousClient& client) : client_(client) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    if (const auto done = client_.set(key, data); !done.ok()) throw std::runtime_error(done.error().message);
  }
  std::vector<char> get(const std::string& key) override {
    auto value = client_.get(key);
    if (!value.ok()) throw std::runtime_error(value.error().message);
    return std::move(*value);
  }
  void wait(const std::vector<std::string>& keys) override {
    for (const auto& key : keys) get(key);
  }

 private:
  RendezvousClient& client_;
};

}  // namespace

Result<std::unique_ptr<Communicator>> join_gloo(const GlooJoin& join, const GroupOptions& options) {
  const RankIdentity& who = join.who;
  // gloo writes to a rank that is gone as to any other.
  std::signal(SIGPIPE, SIG_IGN);
  SLUICE_TRY(auto client, RendezvousClient::join(join.rendezvous, who, options.join_limit));
  try {
    auto device = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr(join.address.c_str()));
    auto context = std::make_shared<gloo::rendezvous::Context>(who.rank, who.size);
    context->setTimeout(std::chrono::duration_cast<std::chrono::milliseconds>(options.join_limit));
    Store store(client);
    context->connectFullMesh(store, device);
    store.set(host_key(who.rank), {who.host.begin(), who.host.end()});
    std::vector<int> ranks(static_cast<size_t>(who.size));
    std::iota(ranks.begin(), ranks.end(), 0);
    std::vector<std::string> hosts;
    for (const int rank : ranks) {
      const auto host = store.get(host_key(rank));
      hosts.emplace_back(host.begin(), host.end());
    }
    auto world = std::make_shared<GlooWorld>(std::move(context), std::move(hosts), options, join.shown_in);
    auto made = std::make_unique<Gloo>(std::move(world), 0, options.name, who.rank, std::move(ranks));
    SLUICE_TRY_VOID(made->begin());
    return std::unique_ptr<Communicator>(std::move(made));
  } catch (const std::exception& e) {
    return Error{ErrorCode::kUnavailable,
                 fmt::format("rank {} at {} cannot connect to the others: {}", who.rank, join.address, e.what())};
  }
}

}  // namespace sluice::parallel
