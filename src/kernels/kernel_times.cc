#include "kernels/kernel_times.h"

#include <fmt/format.h>

#include "base/check.h"
#include "base/clock.h"

namespace sluice::kernels {
namespace {

// What a call is counted under, and what it has to read and to multiply.
struct Work {
  std::string name;
  double bytes = 0;
  double operations = 0;
};

class TimedBackend final : public Backend {
 public:
  TimedBackend(std::unique_ptr<Backend> backend, KernelTimes& times) : backend_(std::move(backend)), times_(times) {
    SLUICE_CHECK(backend_->host_visible(), "kernels of device {} are queued: their calls take no time", name());
  }

  std::string_view name() const override { return backend_->name(); }
  std::unique_ptr<Stream> make_stream() const override { return backend_->make_stream(); }
  Result<void*> allocate(size_t bytes) const override { return backend_->allocate(bytes); }
  void release(void* memory, size_t bytes) const override { backend_->release(memory, bytes); }
  bool host_visible() const override { return true; }
  void copy_to_device(const Context& c, void* to, const void* from, size_t bytes) const override {
    backend_->copy_to_device(c, to, from, bytes);
  }
  void copy_to_host(const Context& c, void* to, const void* from, size_t bytes) const override {
    backend_->copy_to_host(c, to, from, bytes);
  }
  void copy(const Context& c, void* to, const void* from, size_t bytes) const override {
    backend_->copy(c, to, from, bytes);
  }
  void clear(const Context& c, void* at, size_t bytes) const override { backend_->clear(c, at, bytes); }
  void synchronize(const Context& c) const override { backend_->synchronize(c); }
  bool multiplies(DType dtype) const override { return backend_->multiplies(dtype); }
  bool keeps(const LinearShape& shape) const override { return backend_->keeps(shape); }
  bool fuses_gates(const LinearShape& shape) const override { return backend_->fuses_gates(shape); }
  int64_t padded_rows(int64_t n) const override { return backend_->padded_rows(n); }
  int64_t group_padding(int64_t groups) const override { return backend_->group_padding(groups); }
  size_t packed_bytes(const LinearShape& shape) const override { return backend_->packed_bytes(shape); }
  void pack(const LinearShape& shape, const RowReader& rows, void* to) const override {
    backend_->pack(shape, rows, to);
  }

  void linear(const Context& c, const LinearArgs& args) const override {
    timed(c, args, &Backend::linear, product("linear", *args.shape, args.n, 1));
  }
  void gated_linear(const Context& c, const GatedLinearArgs& args) const override {
    timed(c, args, &Backend::gated_linear, product("gated_linear", *args.product.shape, args.product.n, 1));
  }
  void head_linear(const Context& c, const HeadLinearArgs& args) const override {
    timed(c, args, &Backend::head_linear, product("head_linear", *args.shape, args.n * args.n_heads, args.n_heads));
  }
  void grouped_linear(const Context& c, const GroupedLinearArgs& args) const override {
    timed(c, args, &Backend::grouped_linear, grouped("grouped_linear", args));
  }
  void gated_grouped_linear(const Context& c, const GatedGroupedLinearArgs& args) const override {
    timed(c, args, &Backend::gated_grouped_linear, grouped("gated_grouped_linear", args.product));
  }
  void attention(const Context& c, const AttentionArgs& args) const override {
    timed(c, args, &Backend::attention, cached("attention", args, 2, 4 * args.n_heads * args.head_dim));
  }
  void latent_attention(const Context& c, const LatentAttentionArgs& args) const override {
    timed(c, args, &Backend::latent_attention,
          cached("latent_attention", args, 1, 2 * args.n_heads * (2 * args.latent + args.rotary)));
  }
  void expanded_attention(const Context& c, const ExpandedAttentionArgs& args) const override {
    const int64_t values = args.key_shape->out + args.value_shape->out;
    Work work = cached("expanded_attention", args, 1, 2 * args.n_heads * (values + args.rotary));
    // Each cached token is expanded once.
    work.operations += work.bytes / static_cast<double>(args.row.bytes()) *
                       static_cast<double>(2 * args.n_heads * values * args.key_shape->in);
    timed(c, args, &Backend::expanded_attention, work);
  }
  void embed(const Context& c, const EmbedArgs& args) const override { timed(c, args, &Backend::embed, {"embed"}); }
  void rms_norm(const Context& c, const RmsNormArgs& args) const override {
    timed(c, args, &Backend::rms_norm, {"rms_norm"});
  }
  void square_sum(const Context& c, const SquareSumArgs& args) const override {
    timed(c, args, &Backend::square_sum, {"square_sum"});
  }
  void rope_angles(const Context& c, const RopeAnglesArgs& args) const override {
    timed(c, args, &Backend::rope_angles, {"rope_angles"});
  }
  void rope(const Context& c, const RopeArgs& args) const override { timed(c, args, &Backend::rope, {"rope"}); }
  void store_kv(const Context& c, const StoreKvArgs& args) const override {
    timed(c, args, &Backend::store_kv, {"store_kv"});
  }
  void silu_mul(const Context& c, const SiluMulArgs& args) const override {
    timed(c, args, &Backend::silu_mul, {"silu_mul"});
  }
  void gather_rows(const Context& c, const GatherRowsArgs& args) const override {
    timed(c, args, &Backend::gather_rows, {"gather_rows"});
  }
  void route(const Context& c, const RouteArgs& args) const override { timed(c, args, &Backend::route, {"route"}); }
  void sort_by_expert(const Context& c, const SortByExpertArgs& args) const override {
    timed(c, args, &Backend::sort_by_expert, {"sort_by_expert"});
  }
  void scatter_rows(const Context& c, const ScatterRowsArgs& args) const override {
    timed(c, args, &Backend::scatter_rows, {"scatter_rows"});
  }
  void pack_rows(const Context& c, const PackRowsArgs& args) const override {
    timed(c, args, &Backend::pack_rows, {"pack_rows"});
  }
  void unpack_rows(const Context& c, const UnpackRowsArgs& args) const override {
    timed(c, args, &Backend::unpack_rows, {"unpack_rows"});
  }
  void combine_rows(const Context& c, const CombineRowsArgs& args) const override {
    timed(c, args, &Backend::combine_rows, {"combine_rows"});
  }
  void lightning_attention(const Context& c, const LightningAttentionArgs& args) const override {
    timed(c, args, &Backend::lightning_attention, {"lightning_attention"});
  }
  void sigmoid_mul(const Context& c, const SigmoidMulArgs& args) const override {
    timed(c, args, &Backend::sigmoid_mul, {"sigmoid_mul"});
  }
  void scale(const Context& c, const ScaleArgs& args) const override { timed(c, args, &Backend::scale, {"scale"}); }
  void choose_copies(const Context& c, const ChooseCopiesArgs& args) const override {
    timed(c, args, &Backend::choose_copies, {"choose_copies"});
  }

 private:
  Work grouped(std::string_view name, const GroupedLinearArgs& args) const {
    int64_t rows = 0, touched = 0;
    for (int64_t e = 0; e < args.experts; ++e) {
      rows += args.counts[e];
      touched += args.counts[e] > 0 ? 1 : 0;
    }
    return product(name, *args.shape, rows, touched);
  }
  // Of `rows` rows in all with `weights` weights.
  Work product(std::string_view name, const LinearShape& shape, int64_t rows, int64_t weights) const {
    return {.name = fmt::format("{} {} -> {}", name, shape.in, shape.out),
            .bytes = static_cast<double>(weights) * static_cast<double>(backend_->packed_bytes(shape)),
            .operations = 2.0 * static_cast<double>(rows * shape.in) * static_cast<double>(shape.out)};
  }

  // Attention over `planes` planes of the cache, of which a query and a cached token take `operations`.
  template <class Args>
  static Work cached(std::string name, const Args& args, int64_t planes, int64_t operations) {
    double tokens = 0, pairs = 0;
    for (int64_t s = 0; s < args.n_seqs; ++s) {
      const double queries = args.query_start[s + 1] - args.query_start[s], length = args.seq_lens[s];
      tokens += length;
      pairs += queries * (length - (queries - 1) / 2);  // no query sees the tokens after it
    }
    return {.name = std::move(name),
            .bytes = tokens * static_cast<double>(planes * args.row.bytes()),
            .operations = pairs * static_cast<double>(operations)};
  }

  template <class Args>
  void timed(const Context& context, const Args& args, void (Backend::*kernel)(const Context&, const Args&) const,
             const Work& work) const {
    const TimePoint begin = real_clock().now();
    (backend_.get()->*kernel)(context, args);
    KernelTime& time = times_[work.name];
    time.seconds += sluice::seconds(real_clock().now() - begin);
    ++time.calls;
    time.bytes += work.bytes;
    time.operations += work.operations;
  }

  const std::unique_ptr<Backend> backend_;
  KernelTimes& times_;
};

}  // namespace

std::unique_ptr<Backend> time_kernels(std::unique_ptr<Backend> backend, KernelTimes& times) {
  return std::make_unique<TimedBackend>(std::move(backend), times);
}

}  // namespace sluice::kernels
