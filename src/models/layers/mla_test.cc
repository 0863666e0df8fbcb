// Latent attention against the definition: keys and values of every head expanded, in double.
#include "models/layers/mla.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/rng.h"

namespace sluice::models {
namespace {

using kernels::DType;

std::vector<float> draw(Rng& rng, int64_t count, double size) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>((rng.uniform() + rng.uniform() + rng.uniform() - 1.5) * size);
  return values;
}

// Random tensors of the shapes that are asked for by name.
class Source final : public tensor::TensorSource {
 public:
  void add(Rng& rng, const std::string& name, std::vector<int64_t> shape, double size) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    values_[name] = {std::move(shape), draw(rng, count, size)};
  }
  Result<tensor::StoredTensor> find(std::string_view name) const override {
    const auto& [shape, values] = values_.at(std::string(name));
    return tensor::StoredTensor{std::string(name), DType::kF32, shape, std::as_bytes(std::span(values))};
  }
  bool has(std::string_view name) const override { return values_.contains(std::string(name)); }
  const std::vector<float>& of(const std::string& name) const { return values_.at(name).second; }

 private:
  std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>> values_;
};

using Row = std::vector<double>;

Row times(const std::vector<float>& weight, const Row& in, int64_t first, int64_t rows) {
  Row out(static_cast<size_t>(rows));
  for (int64_t j = 0; j < rows; ++j) {
    for (size_t k = 0; k < in.size(); ++k) {
      out[static_cast<size_t>(j)] += weight[static_cast<size_t>(first + j) * in.size() + k] * in[k];
    }
  }
  return out;
}
Row normed(const Row& in, const std::vector<float>& weight) {
  double squares = 0;
  for (const double value : in) squares += value * value;
  Row out = in;
  for (size_t i = 0; i < in.size(); ++i)
    out[i] *= weight[i] / std::sqrt(squares / static_cast<double>(in.size()) + 1e-6);
  return out;
}
// Pairs (2i, 2i + 1), as DeepSeek's checkpoints have them.
void turn(double* pairs, int64_t dim, double position, double theta) {
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double angle = position * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
    const double x = pairs[2 * i], y = pairs[2 * i + 1];
    pairs[2 * i] = x * std::cos(angle) - y * std::sin(angle);
    pairs[2 * i + 1] = x * std::sin(angle) + y * std::cos(angle);
  }
}

ModelConfig tiny(int64_t q_lora) {
  ModelConfig config{.hidden_size = 40, .num_layers = 1, .num_heads = 3, .head_dim = 18, .rotary_dim = 6};
  config.rope = {.theta = 100, .score_scale = 1.3};
  config.mla = MlaConfig{.q_lora_rank = q_lora, .kv_lora_rank = 20, .qk_nope_head_dim = 12, .v_head_dim = 10};
  return config;
}

Source weights_of(const ModelConfig& config, Rng& rng) {
  const MlaConfig& mla = *config.mla;
  const int64_t hidden = config.hidden_size, heads = config.num_heads, lora = mla.q_lora_rank;
  const std::string attention = "model.layers.0.self_attn.";
  Source source;
  source.add(rng, "model.layers.0.input_layernorm.weight", {hidden}, 2);
  if (lora > 0) {
    source.add(rng, attention + "q_a_proj.weight", {lora, hidden}, 0.3);
    source.add(rng, attention + "q_a_layernorm.weight", {lora}, 2);
    source.add(rng, attention + "q_b_proj.weight", {heads * config.head_dim, lora}, 0.3);
  } else {
    source.add(rng, attention + "q_proj.weight", {heads * config.head_dim, hidden}, 0.3);
  }
  source.add(rng, attention + "kv_a_proj_with_mqa.weight", {mla.kv_lora_rank + config.rotary_dim, hidden}, 0.3);
  source.add(rng, attention + "kv_a_layernorm.weight", {mla.kv_lora_rank}, 2);
  source.add(rng, attention + "kv_b_proj.weight", {heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank},
             0.3);
  source.add(rng, attention + "o_proj.weight", {hidden, heads * mla.v_head_dim}, 0.3);
  return source;
}

// What the block adds to each row of one sequence.
std::vector<Row> expected(const ModelConfig& config, const Source& source, const std::vector<Row>& hidden) {
  const MlaConfig& mla = *config.mla;
  const std::string attention = "model.layers.0.self_attn.";
  const int64_t nope = mla.qk_nope_head_dim, rotary = config.rotary_dim, dim = nope + rotary;
  const auto of = [&](const char* name) -> const std::vector<float>& { return source.of(attention + name); };
  std::vector<Row> queries, keys, values;  // [positions][heads * dim or heads * value]
  for (size_t p = 0; p < hidden.size(); ++p) {
    const Row x = normed(hidden[p], source.of("model.layers.0.input_layernorm.weight"));
    Row q = mla.q_lora_rank == 0
                ? times(of("q_proj.weight"), x, 0, config.num_heads * dim)
                : times(of("q_b_proj.weight"),
                        normed(times(of("q_a_proj.weight"), x, 0, mla.q_lora_rank), of("q_a_layernorm.weight")), 0,
                        config.num_heads * dim);
    const Row latent =
        normed(times(of("kv_a_proj_with_mqa.weight"), x, 0, mla.kv_lora_rank), of("kv_a_layernorm.weight"));
    Row shared = times(of("kv_a_proj_with_mqa.weight"), x, mla.kv_lora_rank, rotary);
    turn(shared.data(), rotary, static_cast<double>(p), config.rope.theta);
    Row k, v;
    for (int64_t h = 0; h < config.num_heads; ++h) {
      turn(q.data() + h * dim + nope, rotary, static_cast<double>(p), config.rope.theta);
      const int64_t first = h * (nope + mla.v_head_dim);
      const Row head_k = times(of("kv_b_proj.weight"), latent, first, nope);
      const Row head_v = times(of("kv_b_proj.weight"), latent, first + nope, mla.v_head_dim);
      k.insert(k.end(), head_k.begin(), head_k.end());
      k.insert(k.end(), shared.begin(), shared.end());
      v.insert(v.end(), head_v.begin(), head_v.end());
    }
    queries.push_back(q);
    keys.push_back(k);
    values.push_back(v);
  }
  std::vector<Row> out;
  for (size_t p = 0; p < hidden.size(); ++p) {
    Row attended;
    for (int64_t h = 0; h < config.num_heads; ++h) {
      Row sum(static_cast<size_t>(mla.v_head_dim));
      double total = 0;
      for (size_t other = 0; other <= p; ++other) {
        double dot = 0;
        for (int64_t d = h * dim; d < (h + 1) * dim; ++d) {
          dot += queries[p][static_cast<size_t>(d)] * keys[other][static_cast<size_t>(d)];
        }
        const double weight = std::exp(dot * config.rope.score_scale / std::sqrt(static_cast<double>(dim)));
        total += weight;
        for (size_t d = 0; d < sum.size(); ++d) {
          sum[d] += weight * values[other][static_cast<size_t>(h) * sum.size() + d];
        }
      }
      for (const double value : sum) attended.push_back(value / total);
    }
    out.push_back(times(of("o_proj.weight"), attended, 0, config.hidden_size));
  }
  return out;
}

constexpr int64_t kPositions = 30;

// The block on the CPU: one sequence in chunks, its slots in reverse order.
class LatentAttentionTest : public ::testing::TestWithParam<int64_t> {
 protected:
  LatentAttentionTest() : source_(weights_of(config_, rng_)) {
    EXPECT_TRUE(store_.materialise(source_, context_, {}, {}).ok());
    EXPECT_TRUE(scratch_.allocate(kPositions).ok());
    EXPECT_TRUE(kv_.allocate(kPositions + 1).ok());
    for (int64_t p = 0; p < kPositions; ++p) {
      Row row;
      for (const float value : draw(rng_, config_.hidden_size, 2)) row.push_back(value);
      rows_.push_back(row);
    }
  }

  // Rows [first, first + count) of the sequence; what is added to them.
  std::vector<Row> step(int64_t first, int64_t count) {
    std::vector<int32_t> table, slots, positions;
    for (int32_t p = 0; p < kPositions; ++p) table.push_back(static_cast<int32_t>(kPositions) - p);
    std::vector<float> hidden, cos_sin;
    const auto frequencies = inverse_frequencies(config_);
    for (int64_t p = first; p < first + count; ++p) {
      slots.push_back(table[static_cast<size_t>(p)]);
      for (const double value : rows_[static_cast<size_t>(p)]) hidden.push_back(static_cast<float>(value));
      for (const float f : frequencies) cos_sin.push_back(static_cast<float>(std::cos(static_cast<double>(p) * f)));
      for (const float f : frequencies) cos_sin.push_back(static_cast<float>(std::sin(static_cast<double>(p) * f)));
    }
    const int32_t starts[] = {0, static_cast<int32_t>(count)}, len = static_cast<int32_t>(first + count), row = 0;
    const ForwardBatch batch{.n_tokens = count,
                             .n_seqs = 1,
                             .kv_slots = slots.data(),
                             .query_start = starts,
                             .seq_lens = &len,
                             .table_rows = &row,
                             .slot_table = table.data(),
                             .table_width = kPositions,
                             .host_query_start = starts,
                             .host_seq_lens = &len};
    hidden.resize(static_cast<size_t>(backend_->padded_rows(count) * config_.hidden_size));
    const StateCache no_states(*backend_);
    std::vector<float> x(hidden.size());
    block_.residual().enter(context_, hidden.data(), count, x.data());
    const auto ran = block_.run(
        context_, {.batch = batch, .kv = kv_, .states = no_states, .scratch = scratch_, .cos_sin = cos_sin.data()},
        x.data(), count, hidden.data());
    EXPECT_TRUE(ran.ok());
    std::vector<Row> added;
    for (int64_t i = 0; i < count; ++i) {
      Row out;
      for (int64_t d = 0; d < config_.hidden_size; ++d) {
        out.push_back(hidden[static_cast<size_t>(i * config_.hidden_size + d)] -
                      rows_[static_cast<size_t>(first + i)][static_cast<size_t>(d)]);
      }
      added.push_back(out);
    }
    return added;
  }

  Rng rng_{7};
  const ModelConfig config_ = tiny(GetParam());
  const Source source_;
  const std::unique_ptr<kernels::Backend> backend_ = kernels::make_backend("cpu", 2).value();
  const std::unique_ptr<kernels::Stream> stream_ = backend_->make_stream();
  const kernels::Context context_{backend_.get(), stream_.get()};
  WeightStore store_{*backend_, DType::kF32};
  Scratch scratch_{*backend_};
  KvCache kv_{*backend_, DType::kF32};
  LatentAttention block_{config_, 0, store_, scratch_, kv_};
  std::vector<Row> rows_;
};

// One chunk is expanded, single tokens are absorbed.
TEST_P(LatentAttentionTest, EqualsAttentionOverExpandedKeysAndValuesInAnyChunking) {
  const LatentSizes sizes{.nope = 12, .rotary = 6, .latent = 20, .value = 10};
  ASSERT_TRUE(expanding_is_cheaper(kPositions, kPositions, sizes));
  ASSERT_FALSE(expanding_is_cheaper(1, kPositions, sizes));
  const auto want = expected(config_, source_, rows_);
  for (const int64_t chunk : {kPositions, int64_t{7}, int64_t{1}}) {
    for (int64_t first = 0; first < kPositions; first += chunk) {
      const int64_t count = std::min(chunk, kPositions - first);
      const auto got = step(first, count);
      for (int64_t i = 0; i < count; ++i) {
        for (size_t d = 0; d < got[0].size(); ++d) {
          // Sums of 40 values, five in a row, of rows whose size is that of the result or below: some hundred units of
          // 2^-24 of the largest, which is about 10.
          ASSERT_NEAR(got[static_cast<size_t>(i)][d], want[static_cast<size_t>(first + i)][d], 300 * 10 * 0x1p-24)
              << "position " << first + i << " in chunks of " << chunk;
        }
      }
    }
  }
}

// DeepSeek-V3's sizes.
TEST(ExpandingTest, IsForManyQueries) {
  const LatentSizes sizes{.nope = 128, .rotary = 64, .latent = 512, .value = 128};
  EXPECT_FALSE(expanding_is_cheaper(1, 1000, sizes)) << "decoding";
  EXPECT_TRUE(expanding_is_cheaper(1000, 1000, sizes)) << "a whole prompt";
  EXPECT_TRUE(expanding_is_cheaper(7, 7, sizes)) << "a short one";
  EXPECT_TRUE(expanding_is_cheaper(512, 100'000, sizes)) << "a chunk of a long one";
  EXPECT_FALSE(expanding_is_cheaper(16, 100'000, sizes)) << "a short turn after a long prefix";
}

INSTANTIATE_TEST_SUITE_P(CompressedAndPlainQueries, LatentAttentionTest, ::testing::Values(0, 24));

}  // namespace
}  // namespace sluice::models
