// The slow, obvious twin of every kernel, in host memory: what the backends are held against. Values are float32 (or
// bf16 where a kernel stores that) and sums are in double, so that of a difference only the backend's rounding is seen.
// The arguments are those of kernels.h, but for one thing: the weights of products lie plain, [out, in] of
// shape->dtype.
#pragma once

#include "kernels/kernels.h"

namespace sluice::kernels::ref {

void linear(const LinearArgs& args);
void head_linear(const HeadLinearArgs& args);
void embed(const EmbedArgs& args);
void rms_norm(const RmsNormArgs& args);
void square_sum(const SquareSumArgs& args);
void rope_angles(const RopeAnglesArgs& args);
void rope(const RopeArgs& args);
void store_kv(const StoreKvArgs& args);
void attention(const AttentionArgs& args);
void latent_attention(const LatentAttentionArgs& args);
void expanded_attention(const ExpandedAttentionArgs& args);
void silu_mul(const SiluMulArgs& args);
void gather_rows(const GatherRowsArgs& args);
void route(const RouteArgs& args);
// Without padding between the experts: grouped_linear() here needs none.
void choose_copies(const ChooseCopiesArgs& args);
void sort_by_expert(const SortByExpertArgs& args);
void scatter_rows(const ScatterRowsArgs& args);
void pack_rows(const PackRowsArgs& args);
void unpack_rows(const UnpackRowsArgs& args);
void grouped_linear(const GroupedLinearArgs& args);
void combine_rows(const CombineRowsArgs& args);
void lightning_attention(const LightningAttentionArgs& args);
void sigmoid_mul(const SigmoidMulArgs& args);
void scale(const ScaleArgs& args);

}  // namespace sluice::kernels::ref
