// The products of a dispatch, which multiply different matrices with one input. Appended to the variants of the matrix product,
// with the file that says how many they are.

// Where a workgroup works.
struct Place {
    product: u32,
    group: u32, // of those of its product
}

// The place of workgroup `index`, where a product has `groups_per_rows` workgroups for each `rows_per_group` of its rows. Those
// past the end, which folding may add, get places past the end of the last product.
fn place_of(index: u32, rows_per_group: u32, groups_per_rows: u32) -> Place {
    var place = Place(0u, index);
    for (; place.product + 1u < N_PRODUCTS; place.product++) {
        let n_groups = (params[place.product].n_rows + rows_per_group - 1u) / rows_per_group * groups_per_rows;
        if place.group < n_groups {
            break;
        }
        place.group -= n_groups;
    }
    return place;
}
